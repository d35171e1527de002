"""Head labels for the localiser, proposed from CT by anatomy alone: HECKTOR has none.

One scan's mask (propose), the masks of many scans with their table and picture (cohort).
"""

from hnseg.data.heads.cohort import draw_cases, propose_heads, summary
from hnseg.data.heads.propose import Proposal, propose_head

__all__ = ["Proposal", "draw_cases", "propose_head", "propose_heads", "summary"]
