"""The paper's comparison systems (Sec. 4.1.1) and the rungs of its ablation (Sec. 5.3).

Reading order: `system` (what each of them is), `m_unet` (the simplest), the others, `systems`
(all by name). All are 2-D, read LPET and MR, and are trained by the same loop as MFdiff.
"""

from mfdiff_core.comparison.system import Losses, System, SystemConfig
from mfdiff_core.comparison.systems import SYSTEMS, build_system, system_preset

__all__ = ["SYSTEMS", "Losses", "System", "SystemConfig", "build_system", "system_preset"]
