"""Names and citations of well-known sources, for cards; a source that is not here gets no citation of our making."""

from __future__ import annotations

from typing import NamedTuple


class Known(NamedTuple):
    """A source by the name its authors gave it, and how they ask to be cited."""

    name: str
    bibtex: str


_DIGITS = """@misc{alpaydin1998digits,
  title        = {Optical Recognition of Handwritten Digits},
  author       = {Alpaydin, E. and Kaynak, C.},
  year         = {1998},
  howpublished = {UCI Machine Learning Repository},
  doi          = {10.24432/C50P49}
}"""
_CIFAR = """@techreport{krizhevsky2009learning,
  title       = {Learning Multiple Layers of Features from Tiny Images},
  author      = {Krizhevsky, Alex},
  institution = {University of Toronto},
  year        = {2009}
}"""
_MNIST = """@article{lecun1998gradient,
  title   = {Gradient-Based Learning Applied to Document Recognition},
  author  = {LeCun, Yann and Bottou, L{\\'e}on and Bengio, Yoshua and Haffner, Patrick},
  journal = {Proceedings of the IEEE},
  volume  = {86},
  number  = {11},
  pages   = {2278--2324},
  year    = {1998}
}"""
_FASHION = """@article{xiao2017fashion,
  title   = {Fashion-{MNIST}: a Novel Image Dataset for Benchmarking Machine Learning Algorithms},
  author  = {Xiao, Han and Rasul, Kashif and Vollgraf, Roland},
  journal = {arXiv preprint arXiv:1708.07747},
  year    = {2017}
}"""
_KMNIST = """@article{clanuwat2018deep,
  title   = {Deep Learning for Classical {J}apanese Literature},
  author  = {Clanuwat, Tarin and Bober-Irizar, Mikel and Kitamoto, Asanobu and Lamb, Alex and Yamamoto, Kazuaki and
             Ha, David},
  journal = {arXiv preprint arXiv:1812.01718},
  year    = {2018}
}"""
_SVHN = """@inproceedings{netzer2011reading,
  title     = {Reading Digits in Natural Images with Unsupervised Feature Learning},
  author    = {Netzer, Yuval and Wang, Tao and Coates, Adam and Bissacco, Alessandro and Wu, Bo and Ng, Andrew Y.},
  booktitle = {NIPS Workshop on Deep Learning and Unsupervised Feature Learning},
  year      = {2011}
}"""
_STL = """@inproceedings{coates2011analysis,
  title     = {An Analysis of Single-Layer Networks in Unsupervised Feature Learning},
  author    = {Coates, Adam and Ng, Andrew and Lee, Honglak},
  booktitle = {International Conference on Artificial Intelligence and Statistics (AISTATS)},
  year      = {2011}
}"""

_KNOWN = {
    "builtin:digits": Known("Handwritten digits (scikit-learn)", _DIGITS),
    "torchvision:CIFAR10": Known("CIFAR-10", _CIFAR),
    "uoft-cs/cifar10": Known("CIFAR-10", _CIFAR),
    "torchvision:CIFAR100": Known("CIFAR-100", _CIFAR),
    "uoft-cs/cifar100": Known("CIFAR-100", _CIFAR),
    "torchvision:MNIST": Known("MNIST", _MNIST),
    "ylecun/mnist": Known("MNIST", _MNIST),
    "torchvision:FashionMNIST": Known("Fashion-MNIST", _FASHION),
    "zalando-datasets/fashion_mnist": Known("Fashion-MNIST", _FASHION),
    "torchvision:KMNIST": Known("KMNIST", _KMNIST),
    "torchvision:SVHN": Known("SVHN", _SVHN),
    "ufldl-stanford/svhn": Known("SVHN", _SVHN),
    "torchvision:STL10": Known("STL-10", _STL),
}


def known(source_id: str) -> Known | None:
    """Look a source up by its id in recipes; None if it is not one of the well-known."""
    return _KNOWN.get(source_id)
