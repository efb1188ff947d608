"""Words of imaging that mean the same, and words that exclude one another: data, no rules.

Each line of `SYNONYMS` is the word that stands for its spellings. Spellings are written as they
come out of `strict_words`: lower case, no hyphens, one blank, singular.
"""

SYNONYMS: dict[str, tuple[str, ...]] = {
    # modalities
    "xray": ("x ray", "xray", "radiograph", "radiography", "plain film", "roentgenogram"),
    "chest xray": ("cxr",),
    "ct": (
        "computed tomography",
        "computerized tomography",
        "computerised tomography",
        "computed tomography scan",
        "ct scan",
        "cat scan",
        "ct image",
    ),
    "mri": (
        "magnetic resonance imaging",
        "magnetic resonance image",
        "magnetic resonance",
        "mr imaging",
        "mr",
        "mr image",
        "mr scan",
        "mri scan",
        "mri image",
    ),
    "ultrasound": (
        "ultrasonography",
        "sonography",
        "ultrasonogram",
        "sonogram",
        "ultrasound image",
    ),
    "pet": ("positron emission tomography", "pet scan"),
    "ecg": ("ekg", "electrocardiogram"),
    "he": ("h and e", "h e", "hematoxylin and eosin", "haematoxylin and eosin"),
    # sequences and planes
    "t1": ("t1w", "t1 weighted", "t1 weighted image", "t1 image"),
    "t2": ("t2w", "t2 weighted", "t2 weighted image", "t2 image"),
    "dwi": ("diffusion weighted", "diffusion weighted image", "diffusion weighted imaging"),
    "ap": ("anteroposterior", "antero posterior", "ap view", "anteroposterior view"),
    "pa": ("posteroanterior", "postero anterior", "pa view", "posteroanterior view"),
    "axial": ("transverse", "transaxial", "axial plane", "axial view", "transverse plane"),
    "coronal": ("coronal plane", "coronal view"),
    "sagittal": ("sagittal plane", "sagittal view"),
    # sides
    "left": ("left side", "left sided", "left hand side", "lt"),
    "right": ("right side", "right sided", "right hand side", "rt"),
    "bilateral": (
        "both side",
        "both",
        "bilaterally",
        "left and right",
        "right and left",
        "left right",
        "right left",
    ),
    # findings
    "cardiomegaly": ("enlarged heart", "heart enlargement", "cardiac enlargement"),
    "tumor": ("tumour",),
    "edema": ("oedema",),
    "hemorrhage": ("haemorrhage", "bleeding", "bleed"),
    "hematoma": ("haematoma",),
    "ischemia": ("ischaemia",),
    "esophagus": ("oesophagus",),
    "fetus": ("foetus",),
    "gray matter": ("grey matter",),
    "hypodense": ("hypoattenuating", "low density", "low attenuation"),
    "hyperdense": ("hyperattenuating", "high density", "high attenuation"),
    "pulmonary embolism": ("pulmonary emboli", "pulmonary embolus"),
    "pleural effusion": ("pleural fluid", "fluid in pleural space"),
    "stroke": ("cerebrovascular accident", "cva"),
    "myocardial infarction": ("heart attack",),
    "renal": ("kidney",),
    "hepatic": ("liver",),
    "abdomen": ("belly",),
}

# An answer that names two of one line has not chosen.
EXCLUSIVE: tuple[frozenset[str], ...] = (
    frozenset({"ct", "mri", "xray", "ultrasound", "pet"}),
    frozenset({"t1", "t2", "flair", "dwi"}),
    frozenset({"axial", "coronal", "sagittal"}),
    frozenset({"ap", "pa"}),
    frozenset({"left", "right", "bilateral"}),
    frozenset({"normal", "abnormal"}),
    frozenset({"benign", "malignant"}),
    frozenset({"male", "female"}),
    frozenset({"hypodense", "hyperdense", "isodense"}),
)

# Spellings of units, and what a length, a mass or a volume is counted in.
UNITS: dict[str, tuple[str, ...]] = {
    "mm": ("millimeter", "millimetre"),
    "cm": ("centimeter", "centimetre"),
    "m": ("meter", "metre"),
    "mg": ("milligram",),
    "g": ("gram", "gramme"),
    "kg": ("kilogram",),
    "ml": ("milliliter", "millilitre", "cc"),
    "l": ("liter", "litre"),
    "%": ("percent", "per cent"),
    "year": ("yr", "yo", "y o", "year old"),
}
SCALES: dict[str, tuple[str, str]] = {  # unit: (the unit it is counted in, how many of it)
    "cm": ("mm", "10"),
    "m": ("mm", "1000"),
    "g": ("mg", "1000"),
    "kg": ("mg", "1000000"),
    "l": ("ml", "1000"),
}

IRREGULAR_PLURALS: dict[str, str] = {
    "metastases": "metastasis",
    "cortices": "cortex",
    "apices": "apex",
    "indices": "index",
    "appendices": "appendix",
    "diverticula": "diverticulum",
    "ganglia": "ganglion",
    "nuclei": "nucleus",
    "thrombi": "thrombus",
    "emboli": "embolus",
    "bronchi": "bronchus",
    "alveoli": "alveolus",
    "calculi": "calculus",
    "rami": "ramus",
    "testes": "testis",
    "foci": "focus",
    "feet": "foot",
    "teeth": "tooth",
    "lobi": "lobus",
    "men": "man",
    "women": "woman",
    "children": "child",
}
# Words that end like a plural and are none.
SINGULAR = frozenset(
    {
        "yes",
        "this",
        "his",
        "its",
        "has",
        "was",
        "is",
        "as",
        "us",
        "does",
        "series",
        "species",
        "pancreas",
        "biceps",
        "triceps",
        "pus",
        "gas",
        "lens",
        "ascites",
        "herpes",
        "diabetes",
        "rabies",
        "scabies",
        "feces",
        "less",
        "plus",
        "thus",
        "always",
        "perhaps",
    }
)
