"""Every data set by name."""

from pipelines.datasets.iu_xray_report import IU_XRAY_REPORT
from pipelines.datasets.iu_xray_vqa import IU_XRAY_VQA
from pipelines.datasets.mimic_cxr_report import MIMIC_CXR_REPORT
from pipelines.datasets.omnimedvqa import OMNIMEDVQA
from pipelines.datasets.path_vqa import PATH_VQA
from pipelines.datasets.release import DataSet
from pipelines.datasets.slake import SLAKE
from pipelines.datasets.vqa_rad import VQA_RAD
from shared.errors import UserError, did_you_mean

BRAIN_ATLAS = "brain-atlas"
NIH_RSNA = "nih-rsna"
SETS: dict[str, DataSet] = {
    entry.name: entry
    for entry in (
        SLAKE,
        VQA_RAD,
        PATH_VQA,
        IU_XRAY_VQA,
        IU_XRAY_REPORT,
        MIMIC_CXR_REPORT,
        OMNIMEDVQA,
    )
}


def data_set(name: str) -> DataSet:
    """Return the entry `name`; an unknown one is an error that names the nearest."""
    if name in SETS:
        return SETS[name]
    known = [*SETS, BRAIN_ATLAS, NIH_RSNA]
    hint = did_you_mean(name, known, f"there are {', '.join(known)}")
    raise UserError(f"no data set is called {name!r}; {hint}")
