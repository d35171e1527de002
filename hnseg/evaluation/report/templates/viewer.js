"use strict";

// One viewer for all cases: it moves into the case that asks for it. Its code is unpacked when first asked for.
const viewer = document.getElementById("viewer");
const say = (text) => { document.getElementById("viewer-status").textContent = text; };
const control = (name) => viewer.querySelector(`[name=${name}]`);
const range = (name) => control(name).value.split(",").map(Number);
const colours = JSON.parse(document.getElementById("colours").textContent);
const NARROW = 700; // pixels
let loading = null;

async function start() {
  const { Niivue } = await unpack("niivue");
  const niivue = new Niivue({
    logLevel: "error",
    isRadiologicalConvention: true,
    dragAndDropEnabled: false,
    multiplanarLayout: innerWidth < NARROW ? 1 : 3, // a column or a row
    multiplanarShowRender: 0, // never
    crosshairColor: [1, 1, 0, 0.4],
    crosshairWidth: 0.3,
  });
  await niivue.attachToCanvas(document.getElementById("canvas"));
  return niivue;
}

// The labels 1 and 2 in their colours, the background clear.
function labels([first, second]) {
  const channel = (at) => [0, ...[first, second].map((hex) => parseInt(hex.slice(at, at + 2), 16))];
  return { R: channel(1), G: channel(3), B: channel(5), A: [0, 255, 255], I: [0, 1, 2], labels: ["", "GTVp", "GTVn"] };
}

function update(niivue) {
  for (const volume of niivue.volumes) {
    if (volume.name === "ct.nii.gz") [volume.cal_min, volume.cal_max] = range("ct");
    if (volume.name === "pet.nii.gz") [volume.cal_min, volume.cal_max] = range("suv");
    const box = control(volume.name.replace(".nii.gz", ""));
    if (box?.type === "checkbox") volume.opacity = box.checked ? 0.5 : 0;
  }
  niivue.updateGLVolume();
}

let shown = Promise.resolve();

async function show(details) {
  if (!document.createElement("canvas").getContext("webgl2")) {
    say("This browser has no WebGL2, which the viewer needs; the pictures below show every lesion.");
    document.getElementById("stage").hidden = document.getElementById("viewer-tools").hidden = true;
    return;
  }
  say("Loading the case.");
  loading ??= start();
  const niivue = await loading;
  for (const volume of [...niivue.volumes]) niivue.removeVolume(volume);
  const files = JSON.parse(details.querySelector(".volumes").textContent);
  const colormaps = { ct: "gray", pet: "hot", truth: "gray", prediction: "gray" };
  for (const [name, colormap] of Object.entries(colormaps).filter(([name]) => name in files)) {
    await niivue.addVolumeFromUrl({ buffer: bytes(files[name]).buffer, name: `${name}.nii.gz`, url: `${name}.nii.gz`, colormap });
    if (name in colours) niivue.volumes.at(-1).setColormapLabel(labels(colours[name]));
  }
  control("truth").disabled = !("truth" in files);
  update(niivue);
  say(`${details.querySelector("h3").textContent.trim()} is shown.`);
}

for (const button of document.querySelectorAll("button.view")) {
  button.addEventListener("click", () => {
    const details = button.closest("details");
    button.parentNode.after(viewer);
    viewer.hidden = false;
    // One case after the other: two at once would lie on top of each other.
    shown = shown.then(() => show(details)).catch((error) => say(`The viewer failed (${error.message}); the pictures below show every lesion.`));
  });
}

viewer.addEventListener("change", async () => {
  if (loading) update(await loading);
});
