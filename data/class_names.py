"""What the names of classes mean, in several languages: normal, perhaps normal, unknown, or a finding.

The words for normal stand here and nowhere else. Names are compared by their letters alone: `No_Finding`, `nofinding`
and `2. No findings` are one name.
"""

import re
import unicodedata
from collections.abc import Collection, Mapping
from typing import Literal, NamedTuple

from data.errors import UserError, did_you_mean, quoted


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


# names that mean normal, whatever the other classes are
NORMAL = _words(
    """
    normal normals healthy health healthyvolunteer healthyvolunteers healthycontrol healthycontrols
    normalcontrol normalcontrols nofinding nofindings noabnormality noabnormalities nodisease diseasefree
    unremarkable
    gesund gesunde unauffallig unauffallige unauffaellig unauffaellige normalbefund ohnebefund
    sano sanos sana sanas saludable saludables normales sinhallazgos
    sain sains saine saines normale normaux normaes
    sani sane normali
    saudavel saudaveis normais semachados
    saglıklı saglikli норма здоровые здоров 정상
    正常 健康 无异常 無異常 未见异常 異常なし
    """
)
# names that mean normal only if no other name does: "controls" beside "healthy" may have another disease
BY_CONTRAST = _words(
    """
    0 negative negatives neg control controls controlgroup
    negativ negative kontrolle kontrollen kontrollgruppe
    negativo negativos negativa negativas controles grupocontrol
    negatif negatifs temoin temoins
    negativi controllo controlli
    controle контроль
    阴性 陰性 对照 對照 对照组 對照組
    """
)
UNKNOWN = _words(
    "unlabelled unlabeled unlabel nolabel nolabels withoutlabel withoutlabels unknown unsorted unclassified"
)
# first words that mean "without this finding", which may be normal or not
WITHOUT = _words("no non not without free ohne kein sin sans sem senza benign benigno benin other others rest")
# words in a class's name that mean nothing
FILLERS = _words(
    "class label cxr chest thorax xray xrays x ray rays radiograph radiographs images image img imgs lung lungs "
    "patient patients case cases subject subjects people scans"
)

MASKS = ("mask", "segmentation", "annotation")  # of pixels; in the plural too
Says = Literal["normal", "by contrast", "perhaps", "unknown", "other"]


def plain_words(name: str) -> list[str]:
    """The words of a name, in lower case and without accents; numbers before words are left out, as in `2. Normal`."""
    words = _words_and_numbers(name)
    named = [word for word in words if not word.isdigit()]
    return named or words


def _words_and_numbers(name: str) -> list[str]:
    bare = unicodedata.normalize("NFKD", name.casefold())
    bare = "".join(sign for sign in bare if not unicodedata.combining(sign))
    return re.findall(r"[^\W_]+", unicodedata.normalize("NFC", bare))


def says(name: str) -> Says:
    """What the name of a class says of its images."""
    words = plain_words(name)
    words = [word for word in words if word not in FILLERS] or words
    joined = "".join(words)
    if joined in NORMAL:
        return "normal"
    if joined in BY_CONTRAST:
        return "by contrast"
    if joined in UNKNOWN:
        return "unknown"
    if words and (words[0] in WITHOUT or words[-1] in ("free", "negative") or re.match(r"non[a-z]{2}", words[0])):
        return "perhaps"
    return "other"


class Classes(NamedTuple):
    """Class names by what they mean, in the order in which they were found."""

    normal: list[str]
    abnormal: list[str]
    unknown: list[str]

    def label(self, name: str) -> float:
        """0.0 normal, 1.0 abnormal, NaN unknown."""
        if name in self.unknown:
            return float("nan")
        return float(name in self.abnormal)

    def note(self, counts: Mapping[str, int]) -> str:
        """What became of each class, in a line: `normal: Controls (52 images); abnormal: TB (40 images)`."""
        parts = []
        for meaning, names in zip(self._fields, self, strict=True):
            shown = ", ".join(f"{name} ({_images(counts[name])})" for name in names)
            if shown:
                parts.append(f"{meaning}: {shown}")
        return "; ".join(parts)


def _images(count: int) -> str:
    return "1 image" if count == 1 else f"{count:,} images"


def told_apart(names: Collection[str], given: Collection[str] | None, place: str, what: str, otherwise: str) -> Classes:
    """Class names → which are normal: those `given` (`data.normal`), else those whose names say it.

    Raises UserError if no name says it or several may, or if a given one does not exist; the line lists all names.
    what: the things that have these names, such as `class folders`; otherwise: what else the user can do.
    """
    unknown = [name for name in names if says(name) == "unknown"]
    others = [name for name in names if name not in unknown]
    if given is not None:
        normal = _given(names, given, place, what)
        unknown = [name for name in unknown if name not in normal]
        return Classes(normal, [name for name in others if name not in normal], unknown)

    # a name such as "controls" means normal if no other name does
    meanings = {name: says(name) for name in others}
    normal = [name for name in others if meanings[name] == "normal"]
    contrasts = [name for name in others if meanings[name] == "by contrast"]
    perhaps = [name for name in others if meanings[name] == "perhaps"]
    if not normal and len({"".join(plain_words(name)) for name in contrasts}) == 1:
        normal, contrasts = contrasts, []

    doubtful = contrasts + perhaps
    if (normal and not doubtful) or not others:
        return Classes(normal, [name for name in others if name not in normal], unknown)
    shown = quoted(", ".join(names), f"{len(names)} of them")
    if not normal and not doubtful:
        found = f"none whose name says that it is normal, expected one; give 'data.normal=[NAME]'{otherwise}"
    else:
        may_be = ", ".join(normal + doubtful)
        found = f"of which {quoted(may_be, 'several')} may be normal, expected to be told; give 'data.normal=[NAME, …]'"
    raise UserError(f"{place}: found {what} {shown}, {found}")


def _given(names: Collection[str], given: Collection[str], place: str, what: str) -> list[str]:
    """The class names that are meant; UserError for one that is none of them."""
    normal: list[str] = []
    for name in given:
        meant = _meant(name, names)
        if not meant:
            shown = quoted(", ".join(names), f"{len(names)} of them")
            hint = quoted(did_you_mean(name, names), instead="")
            raise UserError(
                f"data.normal: found {name!r}, expected {what} of {place.removeprefix('data.root: ')}: {shown}{hint}"
            )
        normal += meant
    return list(dict.fromkeys(normal))


def _meant(given: str, names: Collection[str]) -> list[str]:
    """The names that differ from a given one in case, blanks and signs alone; else in a number that only one has.

    `stage 0` is `Stage_0` and not `Stage 1`, but `no findings` may stand for `2. No findings`.
    """
    whole = "".join(_words_and_numbers(given))
    alike = [name for name in names if "".join(_words_and_numbers(name)) == whole]
    if alike:
        return alike
    letters = "".join(plain_words(given))
    same = [name for name in names if "".join(plain_words(name)) == letters]
    if letters == whole:
        return same
    return [name for name in same if "".join(_words_and_numbers(name)) == letters]


def holds_masks(name: str) -> bool:
    """Whether the name of a folder inside a class says that it holds masks of the radiographs beside it."""
    return "".join(plain_words(name)).removesuffix("s").endswith(MASKS)


def is_of_masks(name: str) -> bool:
    """Whether a folder beside the classes says that it holds masks, and nothing else: `without_mask` may be a class."""
    words = [word for word in plain_words(name) if word not in FILLERS]
    return len(words) == 1 and words[0].removesuffix("s") in MASKS
