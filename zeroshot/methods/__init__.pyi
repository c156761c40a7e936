from ._caption_pool import Pool as Pool
from ._descriptions import Description as Description, Option as Option, describe as describe
from ._door import Method as Method
from ._pipeline import configure as configure, pipeline as pipeline
from ._protocols import (
    Adjuster as Adjuster,
    Caption as Caption,
    Captioner as Captioner,
    Coupling as Coupling,
    Dense as Dense,
    Explanation as Explanation,
    Output as Output,
    Refiner as Refiner,
    Scorer as Scorer,
    as_logits as as_logits,
)
from ._registry import (
    get as get,
    name_of as name_of,
    names as names,
    options as options,
    parameters as parameters,
    values as values,
    with_verb as with_verb,
)
from .ape import APE as APE
from .asif import ASIF as ASIF
from .auto import Auto as Auto
from .autoclip import AutoCLIP as AutoCLIP
from .center import Center as Center
from .chils import CHiLS as CHiLS
from .consensus import Consensus as Consensus
from .csa import CSA as CSA
from .csa_asif import CSAASIF as CSAASIF
from .csls import CSLS as CSLS
from .dis import DIS as DIS
from .dlc import DLC as DLC
from .dn import DN as DN
from .ensemble import Ensemble as Ensemble
from .evidence import Evidence as Evidence
from .frolic import Frolic as Frolic
from .gda import GDA as GDA
from .inmap import InMaP as InMaP
from .inverted_softmax import InvertedSoftmax as InvertedSoftmax
from .lmcap import LMCap as LMCap
from .magic import MaGiC as MaGiC
from .mbr import MBR as MBR
from .mta import MTA as MTA
from .naclip import NACLIP as NACLIP
from .ncm import NCM as NCM
from .neglabel import NegLabel as NegLabel
from .nnn import NNN as NNN
from .oga import OGA as OGA
from .otter import OTTER as OTTER
from .procrustes import Procrustes as Procrustes
from .proker import ProKeR as ProKeR
from .relative import Relative as Relative
from .retrieve import Retrieve as Retrieve
from .ridge import Ridge as Ridge
from .ridge_cca import RidgeCCA as RidgeCCA
from .sclip import SCLIP as SCLIP
from .sinkhorn import Sinkhorn as Sinkhorn
from .splice import SpLiCE as SpLiCE
from .stata import StatA as StatA
from .tda import TDA as TDA
from .timo import TIMO as TIMO
from .tip_adapter import TipAdapter as TipAdapter
from .transclip import TransCLIP as TransCLIP
from .zero import Zero as Zero
from .zlap import ZLaP as ZLaP
from .zpe import ZPE as ZPE
