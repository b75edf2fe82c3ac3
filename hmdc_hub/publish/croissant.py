"""croissant.json: what is in a package, for machines (Croissant 1.0), and how it may be used (Croissant RAI 1.0).

The Hub makes the core of such a description by itself, and knows nothing of where the images came from. This file has
both, since it must stand alone, and is a pure function of the small files of all configurations, like the card.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hmdc_hub.publish.card import HMDC_BIBTEX, ConfigFacts, card_title, known_source, license_of, page_of
from hmdc_hub.schema import PARQUET
from hmdc_hub.store.files import json_text
from hmdc_hub.text import count, one_line

CROISSANT = "croissant.json"
HMDC = "https://arxiv.org/abs/2409.14538"
CONFORMS_TO = ["http://mlcommons.org/croissant/1.0", "http://mlcommons.org/croissant/RAI/1.0"]

# As the specification prints it: a validator warns of any other.
_CONTEXT = {
    "@language": "en",
    "@vocab": "https://schema.org/",
    "citeAs": "cr:citeAs",
    "column": "cr:column",
    "conformsTo": "dct:conformsTo",
    "cr": "http://mlcommons.org/croissant/",
    "data": {"@id": "cr:data", "@type": "@json"},
    "dataType": {"@id": "cr:dataType", "@type": "@vocab"},
    "dct": "http://purl.org/dc/terms/",
    "equivalentProperty": "cr:equivalentProperty",
    "examples": {"@id": "cr:examples", "@type": "@json"},
    "extract": "cr:extract",
    "field": "cr:field",
    "fileObject": "cr:fileObject",
    "fileProperty": "cr:fileProperty",
    "fileSet": "cr:fileSet",
    "format": "cr:format",
    "includes": "cr:includes",
    "isLiveDataset": "cr:isLiveDataset",
    "jsonPath": "cr:jsonPath",
    "key": "cr:key",
    "md5": "cr:md5",
    "parentField": "cr:parentField",
    "path": "cr:path",
    "rai": "http://mlcommons.org/croissant/RAI/",
    "recordSet": "cr:recordSet",
    "references": "cr:references",
    "regex": "cr:regex",
    "repeated": "cr:repeated",
    "replace": "cr:replace",
    "samplingRate": "cr:samplingRate",
    "sc": "https://schema.org/",
    "separator": "cr:separator",
    "source": "cr:source",
    "subField": "cr:subField",
    "transform": "cr:transform",
}


def croissant(configs: Sequence[ConfigFacts], default: str, repo_id: str | None = None) -> str:
    """Describe a package's configurations in JSON-LD, as text.

    Args:
        configs: All of them, as `read_facts` gives them.
        default: Name of the default configuration, whose title is that of the set; none of ours: the first is.
        repo_id: Where it is published; None: not yet, and files are named by their place beside this one.
    """
    sources = {one.info.source.id: one.info.source for one in configs}
    page = f"https://huggingface.co/datasets/{repo_id}" if repo_id else ""
    pages = [found for source in sources.values() if (found := page_of(source))]
    cited = [known_source(id).get("bibtex", "").strip() for id in sources]
    plain = {
        "@context": _CONTEXT,
        "@type": "sc:Dataset",
        "conformsTo": CONFORMS_TO,
        "name": card_title(configs, default),
        "description": " ".join(map(_sentence, configs)),
        "license": sorted({license_of(one) for one in configs}),
        **({"url": page} if page else {}),
        "keywords": ["dataset condensation", "dataset distillation", "synthetic", "HMDC"],
        "citeAs": "\n\n".join([HMDC_BIBTEX, *dict.fromkeys(filter(None, cited))]),
        **({"isBasedOn": pages} if pages else {}),
        "distribution": [_file(one, page) for one in configs],
        "recordSet": [part for one in configs for part in _records(one)],
        **_responsible(configs, [one_line(id) for id in sources]),
    }
    return json_text(plain)


def _sentence(config: ConfigFacts) -> str:
    info = config.info
    each = info.training_images // len(info.source.class_names)
    return (
        f"{config.name}: {count(info.training_images, 'synthetic training image')} ({each} per class, "
        f"{info.source.size} x {info.source.size} pixels), condensed from {sum(info.source.train_counts):,} images of "
        f"{one_line(info.source.id)}."
    )


def _file(config: ConfigFacts, page: str) -> dict[str, Any]:
    path = f"{config.name}/{PARQUET}"
    listed = next(file for file in config.manifest.files if file.path == path)
    return {
        "@type": "cr:FileObject",
        "@id": path,
        "name": path,
        "description": f"Training images and labels of {config.name}.",
        "contentUrl": f"{page}/resolve/main/{path}" if page else path,
        "contentSize": f"{listed.size} B",
        "encodingFormat": "application/x-parquet",
        "sha256": listed.sha256,
    }


def _records(config: ConfigFacts) -> list[dict[str, Any]]:
    """Describe the rows of a configuration, and its classes by label."""
    name, classes = config.name, f"{config.name}/classes"
    source = {"fileObject": {"@id": f"{name}/{PARQUET}"}}

    def field(of: str, column: str, kind: str, what: str, **more: Any) -> dict[str, Any]:
        plain = {"@type": "cr:Field", "@id": f"{of}/{column}", "name": column, "description": what}
        return plain | {"dataType": kind, **more}

    image = source | {"extract": {"column": "image"}, "transform": {"jsonPath": "bytes"}}
    return [
        {
            "@type": "cr:RecordSet",
            "@id": classes,
            "name": f"{name}_classes",
            "description": f"The classes of {name}, by label.",
            "dataType": "sc:Enumeration",
            "key": {"@id": f"{classes}/label"},
            "field": [
                field(classes, "label", "sc:Integer", "Number of the class."),
                field(classes, "name", "sc:Text", "Name of the class."),
            ],
            "data": [
                {f"{classes}/label": label, f"{classes}/name": text}
                for label, text in enumerate(config.manifest.class_names)
            ],
        },
        {
            "@type": "cr:RecordSet",
            "@id": name,
            "name": name,
            "description": _sentence(config),
            "field": [
                field(name, "image", "sc:ImageObject", "A training image, 8-bit PNG.", source=image),
                field(
                    name, "label", "sc:Integer", "Number of its class.",
                    source=source | {"extract": {"column": "label"}},
                    references={"field": {"@id": f"{classes}/label"}},
                ),
            ],
        },
    ]  # fmt: skip


def _responsible(configs: Sequence[ConfigFacts], sources: Sequence[str]) -> dict[str, Any]:
    """Say what a careful user asks: properties of the RAI vocabulary, each in whole sentences."""
    named = " and ".join(sources)
    models = ", ".join(dict.fromkeys(model.name for one in configs for model in one.info.models))
    unscored = [one.name for one in configs if one.scores is None]
    limits = [
        "The images are synthetic: pixels were optimised so that networks learn from them. They are no sample of the "
        "source's distribution and are not made to be looked at.",
        "Scores hold for the architectures and the protocol in scores.json; others give other numbers. They count "
        "trainings of one condensed set: the spread between condensing runs is not in them.",
        "Networks trained on them are mostly less accurate than those trained on the whole source; none should decide "
        "about people or safety on the strength of them.",
    ]
    if unscored:
        limits.append(f"Not evaluated: {', '.join(unscored)}.")
    return {
        "rai:dataCollection": f"Nothing was collected anew. Synthetic images began as real images of {named} and were "
        f"optimised with HMDC ({HMDC}) by the networks {models}: recipe.yaml of each configuration has every setting, "
        "info.json the versions and the fingerprint of the source.",
        "rai:dataCollectionType": ["Secondary Data analysis", "Others: synthetic images, optimised from real ones"],
        "rai:dataCollectionRawData": f"The train split of {named}.",
        "rai:dataPreprocessingProtocol": [
            f"{one.name}: source images resized to {one.info.source.size} x {one.info.source.size} pixels, "
            f"{'one channel' if one.info.source.channels == 1 else 'three channels'}; each synthetic image is cut into "
            f"{count(one.info.factor**2, 'training image')}, enlarged and rounded to 8 bits."
            for one in configs
        ],
        "rai:dataAnnotationProtocol": "Labels are those of the source: each synthetic image was made for one class. "
        "Nobody labelled or checked the images.",
        "rai:dataUseCases": [
            "Training image classifiers on very few images: quick comparisons of architectures and settings, teaching, "
            "and research on dataset condensation.",
            "Not recommended: evaluation, production use, generation of images, or as a way to make data anonymous.",
        ],
        "rai:dataLimitations": limits,
        "rai:dataBiases": [
            "Whatever bias the source has, these images have; condensing may strengthen what is typical of a class and "
            "drop what is rare. This was not measured.",
            "Every class has equally many images, whatever its share of the source.",
        ],
        "rai:personalSensitiveInformation": [
            "The images began as real ones and may still show them: condensing protects nobody's privacy. What the "
            "source shows of people, these images may show."
        ],
    }
