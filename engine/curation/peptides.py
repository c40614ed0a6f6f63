"""Peptides of the COI barcode region: whether a reading frame says what animal COI says, whatever its codons.

Codon use differs between groups (crustaceans, mites, earwigs), peptides hardly. MOTIFS are the 4 amino acid peptides
found in at least 10% of 15,000 COI barcodes of arthropods of BOLD (at most 40 of a family). Shares of a barcode's
peptides among them, in as many others: 1 in 1,000 has less than 0.09, 1 in 200 less than 0.15, the median is 0.72;
shuffled barcodes have at most 0.05, two bacterial sequences sold as ground beetles 0.09. What else is below 0.12 is
mostly another gene or the other half of COI; some scale insects are, too.
"""

import numpy as np

from engine.signals.nucleotides import GENETIC_CODE, per_codon

_ACIDS = "ACDEFGHIKLMNPQRSTVWY*X"
_LENGTH = 4
# fmt: off
_MOTIFS = (
    "AELG AFIM AFPR AFVM AGAI AGAS AGGG AGIS AGMV AGTG AGVS AHAF AHAG AHGG AHSG AIFS AILL AINF AITM ALIG ALLL APDM "
    "ASSI ASVD AVLL AVNF AWAG DDQI DLAI DLTI DMAF DPAG DPIL DPSG DQIY DQMP DRMP DRNF DRNL ELGH ELGN ELGQ ENGA ESGA "
    "ESGV FDPA FDPS FDRM FFDP FFMV FGAW FGIW FGNW FIFG FIMI FIST FITA FITT FMVM FNTS FPRL FPRM FSLH FVMI FVWA FVWS "
    "FWFF FWLL GAGT GAIN GAIT GALI GAPD GASS GASV GAVN GAWA GAWS GDDQ GDPI GFGN GGDP GGFG GGGD GHPG GIAH GISS GITA "
    "GMVG GNDQ GNPG GNWL GQPG GSLI GSSV GTGW GTSL GVGT GVSS GWTV HAFI HAFV HAGA HLAG HLFW HSGA HSGS IAHA IAHG IAHS "
    "IFFM IFGA IFGI IFSL IGAP IGDD IGGF IGND IINM ILGA ILIG ILIR ILLL ILYQ IMIF IMIG INFI INMR IPLF IPLM IRAE IRLE "
    "IRTE ISSI ISSS ISTI ITAI ITAL ITAV ITML ITTI ITTV IVTA IYNT IYNV LAGA LAGI LAGV LAIF LELG LFVW LFWF LGAI LGAP "
    "LGAV LGHP LGNP LGQP LHLA LIGD LIGG LIGN LIPL LIRA LIRL LISS LITA LLIR LLIS LLLL LLLM LLLS LLMS LLPP LLSL LLSS "
    "LLTD LMIG LMLG LMSS LNNM LNTS LPPS LPVL LSFW LSIL LSLL LSLP LSSN LSSS LTDR LTIF LTLL LVES LVPL LYFI LYQH MAFP "
    "MIFF MIGA MIGG MLGA MLIR MLLT MNNM MPIL MPIM MPLF MSFW MVES MVGT MVMP NDQI NFIS NFIT NFNT NGAG NIAH NLNT NLSF "
    "NMRP NMRS NMSF NNLS NNMS NPGS NTIV NTSF NVIV NVVV NWLI NWLV PAGG PDMA PGAL PGSL PILI PILY PIMI PLAS PLFV PLMI "
    "PLML PLSA PLSS PPLA PPLS PPSL PRLN PRMN PSGG PSLT PVLA QHLF QIYN QMPL QPGS RAEL RLEL RLNN RMNN RMPL RNFN RNLN "
    "RTEL SFFD SFWL SGAG SGAS SGGG SGMV SGSS SGVG SIFS SILG SILI SIMG SIVE SLHL SLIG SLLI SLLL SLPV SLSI SLSL SLSM "
    "SLTL SMLI SMVE SNIA SSIL SSIM SSIV SSLV SSMV SSNI SSVD SVDL SVFI SVLI SVVI TAHA TAIL TALL TAVL TDRN TGWT TIFS "
    "TIIN TILN TIVT TLLL TLYF TMLL TSFF TSLS TTII TTIL TTVI TVIN TVYP VDLA VDLT VENG VESG VFIT VGIT VGTG VGTS VINM "
    "VITA VIVT VLAG VLIT VLLL VMIF VMPI VNFI VPLM VSSI VTAH VVIT VVTA VVVT VWAV VWSV VYPP WAGM WLIP WLLP WLVP WSGM "
    "WSVF WSVL WSVV WTVY YFIF YNTI YNVI YPPL YQHL "
)
# fmt: on
MOTIFS = _MOTIFS.split()


def _known() -> np.ndarray:
    """Return bool [22**4]: whether a peptide is a motif."""
    known = np.zeros(len(_ACIDS) ** _LENGTH, dtype=bool)
    for motif in MOTIFS:
        number = 0
        for acid in motif:
            number = number * len(_ACIDS) + _ACIDS.index(acid)
        known[number] = True
    return known


_ACID = per_codon(np.array([_ACIDS.index(acid) for acid in GENETIC_CODE], dtype=np.int32), other=_ACIDS.index("X"))
_KNOWN = _known()


def motif_share(codons: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Return float64 [B]: the share of each frame's peptides of 4 that are motifs.

    Args:
        codons: uint8 [B, L], as `nucleotides.codon_numbers` has them; padding is a codon with N.
        lengths: int64 [B], codons of each frame.
    """
    count = codons.shape[1] - _LENGTH + 1
    if count < 1:
        return np.zeros(len(codons))
    acids = _ACID[codons]
    number = np.zeros((len(codons), count), dtype=np.int32)
    for place in range(_LENGTH):
        number = number * len(_ACIDS) + acids[:, place : place + count]
    hits: np.ndarray = _KNOWN[number].sum(axis=1)
    return hits / np.maximum(lengths - _LENGTH + 1, 1)
