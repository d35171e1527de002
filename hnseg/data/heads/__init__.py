"""Head labels for the head stage, proposed from CT by anatomy alone: HECKTOR has none.

The scan's top on a coarse lattice (outline), the skull and the chin in it (skull), one scan's mask (propose),
many scans' masks with their table (cohort) and picture (sheet).
"""

from hnseg.data.heads.cohort import draw_cases, propose_heads, summary
from hnseg.data.heads.propose import Proposal, propose_head

__all__ = ["Proposal", "draw_cases", "propose_head", "propose_heads", "summary"]
