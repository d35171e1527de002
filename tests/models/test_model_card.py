"""The model card: what a stranger reads who finds a bundle on a disk."""

from members import card, make_bundle


def test_a_name_cannot_break_the_table(tmp_path):
    bundle = make_bundle(tmp_path, card("fine", "resenc", name="a|b_fold_0"))
    assert "\n| a\\|b_fold_0 | fine |" in (bundle.path / "README.md").read_text()


def test_it_says_what_goes_in_what_comes_out_and_who_the_members_are(tmp_path):
    head = card("localiser", "plainconv", trained_on=["A-1", "A-2"], split="abc", recipe="paper")
    fine = card("fine", "resenc", input={"cte": True}, trained_on=None, recipe="authors")
    text = (make_bundle(tmp_path, head, fine).path / "README.md").read_text()
    assert "0 background, 1 GTVp, 2 GTVn" in text
    assert "not a medical device" in text
    assert "rule: half" in text
    lines = [line.strip("|").split("|") for line in text.splitlines() if line.startswith("|")]
    rows = [[cell.strip() for cell in line] for line in lines]
    titles, members = rows[0], {row[0]: dict(zip(rows[0], row, strict=True)) for row in rows[2:]}
    assert titles[0] == "member"
    first, second = members["localiser_plainconv_fold_0"], members["fine_resenc_fold_0"]
    assert (first["input"], first["trained on"], first["split"]) == ("[CT]", "2 cases", "abc")
    assert first["val/dice"] == "0.5000"
    assert second["input"] == "[CT, CT², CT^(1/3), PET]"
    assert (second["trained on"], second["recipe"]) == ("unknown cases", "authors")
