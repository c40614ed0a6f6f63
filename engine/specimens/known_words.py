"""Words that tell what a name is: orders, taxa above them, words for "unknown", and folders that name no taxon."""

ORDERS = frozenset(
    """
    Archaeognatha Microcoryphia Zygentoma Thysanura Ephemeroptera Odonata Plecoptera Dermaptera Embioptera Embiidina
    Orthoptera Phasmatodea Phasmida Phasmatoptera Mantophasmatodea Grylloblattodea Notoptera Mantodea Blattodea
    Blattaria Isoptera Zoraptera Psocodea Psocoptera Phthiraptera Mallophaga Anoplura Thysanoptera Hemiptera Homoptera
    Heteroptera Coleoptera Strepsiptera Hymenoptera Neuroptera Megaloptera Raphidioptera Trichoptera Lepidoptera
    Mecoptera Siphonaptera Diptera Entomobryomorpha Poduromorpha Symphypleona Neelipleona Diplura Protura Acerentomata
    Eosentomata Sinentomata Rhabdura Dicellurata Araneae Opiliones Scorpiones Pseudoscorpiones Solifugae Amblypygi
    Uropygi Thelyphonida Schizomida Ricinulei Palpigradi Ixodida Mesostigmata Holothyrida Opilioacarida Sarcoptiformes
    Trombidiformes Oribatida Astigmata Prostigmata Endeostigmata Xiphosura Xiphosurida Pantopoda Decapoda Isopoda
    Amphipoda Mysida Lophogastrida Tanaidacea Cumacea Euphausiacea Stomatopoda Leptostraca Bathynellacea Anaspidacea
    Calanoida Cyclopoida Harpacticoida Siphonostomatoida Poecilostomatoida Podocopida Myodocopida Halocyprida Anostraca
    Notostraca Diplostraca Cladocera Anomopoda Ctenopoda Onychopoda Haplopoda Spinicaudata Laevicaudata Arguloida
    Balanomorpha Scalpellomorpha Sessilia Pedunculata Kentrogonida Akentrogonida Lithobiomorpha Geophilomorpha
    Scolopendromorpha Scutigeromorpha Craterostigmomorpha Julida Polydesmida Chordeumatida Glomerida Spirobolida
    Spirostreptida Callipodida Polyxenida Siphonophorida Polyzoniida Platydesmida Glomeridesmida Tetramerocerata
    Haplotaxida Lumbriculida Tubificida Crassiclitellata Phyllodocida Stylommatophora Basommatophora Rodentia Primates
    Carnivora Passeriformes Anura Cypriniformes Perciformes Chiroptera
    """.split()  # noqa: SIM905 (a paragraph reads better than 100 quoted words)
)
"""Orders of arthropods, and those that a trap's sequences hit most often beside them."""

HIGHER = frozenset(
    """
    root life cellular eukaryota eukarya animalia metazoa opisthokonta bilateria protostomia ecdysozoa panarthropoda
    arthropoda hexapoda insecta collembola entognatha arachnida acari crustacea malacostraca branchiopoda maxillopoda
    copepoda hexanauplia thecostraca ostracoda ichthyostraca myriapoda chilopoda diplopoda symphyla pauropoda
    pycnogonida merostomata chelicerata mandibulata pancrustacea pterygota neoptera endopterygota holometabola
    exopterygota paraneoptera polyneoptera palaeoptera apterygota dicondylia mollusca annelida gastropoda bivalvia
    clitellata oligochaeta polychaeta chordata vertebrata mammalia aves reptilia amphibia actinopterygii nematoda
    platyhelminthes rotifera tardigrada cnidaria porifera echinodermata onychophora bacteria archaea fungi plantae
    viridiplantae protista chromista viruses nematocera brachycera cyclorrhapha apocrita symphyta aculeata parasitica
    rhopalocera auchenorrhyncha sternorrhyncha fulgoromorpha cicadomorpha adephaga polyphaga zygoptera anisoptera
    ensifera caelifera
    """.split()  # noqa: SIM905 (a paragraph reads better than 100 quoted words)
)
"""Taxa above the order or between order and family, in lower case; none of our ranks."""

UNKNOWN = frozenset(
    """
    unknown unknwon unidentified unident undetermined undet indet indeterminate indetermined unassigned unclassified
    uncultured unplaced undescribed undefined unspecified unresolved unnamed unsorted unlabelled unlabeled ungrouped
    other others misc miscellaneous various mixed todo tbd none null na nan n/a n.a n.d nd not_classified
    not_identified not_assigned notidentified no_data missing suppressed incertae incertae_sedis inc_sed uncertain
    ambiguous ambiguous_taxa blank empty negative control undetermined_taxon unbekannt unbestimmt inconnu indetermine
    desconocido indeterminado sconosciuto environmental environmental_sample metagenome invertebrate
    """.split()  # noqa: SIM905 (a paragraph reads better than 100 quoted words)
)
"""Words that say that a name is not known, in lower case."""

SETTINGS = frozenset(
    """
    photo photos image images img imgs picture pictures pics foto fotos jpg jpeg png tif tiff raw dcim media camera cam
    canon nikon sony lumix olympus scan scans scanner stack stacks focus crop crops cropped original originals full
    thumbnail thumbnails preview processed edited export exports selected backup copy batch session upload uploads new
    old dorsal ventral lateral frontal caudal anterior posterior top bottom side left right front back head wing wings
    leg legs antenna genitalia habitus label labels detail close closeup macro micro view views male males female
    females worker workers queen queens drone soldier soldiers adult adults larva larvae pupa pupae egg eggs nymph
    nymphs juvenile imago exuvia gyne sex unsexed day night nights morning evening trap traps light site sites plot
    plots station stations transect meadow forest wood field garden river lake north south east west spring summer
    autumn winter january february march april may june july august september october november december species genus
    family order taxa taxon moths insects butterflies beetles bees flies specimens data dataset collection good bad
    sharp blurred train val test validation folder folders all all_species reject rejected done checked
    """.split()  # noqa: SIM905 (a paragraph reads better than 100 quoted words)
)
"""Words in folders' names that tell of the taking of a photo, its view, sex, stage or place, in lower case."""

COUNTRIES = frozenset(
    """
    afghanistan albania algeria andorra angola argentina armenia australia austria azerbaijan bahamas bahrain bangladesh
    barbados belarus belgium belize benin bhutan bolivia botswana brazil brunei bulgaria burundi cambodia cameroon
    canada chad chile china colombia comoros congo croatia cuba cyprus czechia denmark djibouti dominica ecuador egypt
    eritrea estonia eswatini ethiopia fiji finland france gabon gambia georgia germany ghana greece greenland grenada
    guadeloupe guatemala guinea guyana haiti honduras hungary iceland india indonesia iran iraq ireland israel italy
    jamaica japan jordan kazakhstan kenya kiribati kosovo kuwait kyrgyzstan laos latvia lebanon lesotho liberia libya
    liechtenstein lithuania luxembourg madagascar malawi malaysia maldives mali malta martinique mauritania mauritius
    mayotte mexico micronesia moldova monaco mongolia montenegro morocco mozambique myanmar namibia nauru nepal
    netherlands nicaragua niger nigeria norway oman pakistan palau palestine panama paraguay peru philippines poland
    portugal qatar reunion romania russia rwanda samoa senegal serbia seychelles singapore slovakia slovenia somalia
    spain sudan suriname sweden switzerland syria taiwan tajikistan tanzania thailand togo tonga tunisia turkey
    turkmenistan tuvalu uganda ukraine uruguay uzbekistan vanuatu venezuela vietnam yemen zambia zimbabwe england
    scotland wales usa uk ontario quebec alberta manitoba saskatchewan yukon nunavut
    """.split()  # noqa: SIM905 (a paragraph reads better than 100 quoted words)
)
"""Countries of one word, in lower case: what a header's field may hold beside names."""
