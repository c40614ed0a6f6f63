"""Kinds of species labels, on names as they stand in real sets."""

import pytest

from engine.specimens.names import NAME_TYPES, is_species, name_type

EXAMPLES = {
    "binomial": [
        "Apis mellifera",
        "Polygonia c-album",
        "Bombus (Pyrobombus) impatiens",
        "Olla v-nigrum",
        "Coccinella 7-punctata",
    ],
    "trinomial": [
        "Apis mellifera capensis",
        "Hydrobius fuscipes var. rottenbergii",
        "Megachile versicolor subsp. versicolor",
    ],
    "open": [
        "Chrysis cf. filiafacialis",
        "Nola nr. lagunculariae",
        "Trouessartia aff. capensis",
        "Argyra sp. nr. nigricoxa",
    ],
    "interim": [
        "Aedes sp. 1ES",
        "Eubazus Malaise7758",
        "Thyreion BioLep10",
        "Cladius china_1",
        "Ophion sp. MS7763",
        "Monomorium afrc-za36",
    ],
    "unidentified": ["Furcula sp.", "Maro n. sp.", "Platycheirus spp.", "Ichneutes sp"],
    "composite": [
        "Thera variata x britannica",
        "Daphnia pulex group",
        "Adelges cooleyi-coweni compl",
        "Aporia leucodice/soracta",
    ],
    "malformed": ["Apis", "", "monomorium madecassum", "Andrena fulva?"],
}


@pytest.mark.parametrize(("kind", "name"), [(kind, name) for kind, names in EXAMPLES.items() for name in names])
def test_name_types(kind: str, name: str) -> None:
    assert name_type(name) == kind


def test_is_species() -> None:
    assert set(EXAMPLES) == set(NAME_TYPES)
    assert is_species(["Apis mellifera", None, "Apis sp.", "", "Apis mellifera carnica"]).tolist() == [
        True,
        False,
        False,
        False,
        True,
    ]
