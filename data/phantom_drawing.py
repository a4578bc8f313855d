"""One synthetic chest radiograph, drawn from a random anatomy.

An image is drawn as a radiograph is made: attenuation is summed along the beam in a standing frame
of the body (`_attenuation`), the patient is placed before the detector (`_place`), and the detector
turns attenuation into grey, noise and borders (`_expose`). Findings change the attenuation only, so
placement and exposure hide them from a classifier that knows no anatomy.

Body frame: x grows to the right of the image (the patient's left), y downwards, both in units of
half the image's width; (0, 0) lies on the spine at the height of the hila.
"""

import math
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

FINDINGS = ("Lung Opacity", "Pleural Effusion", "Cardiomegaly")
DEVICES = "Support Devices"

CANVAS = 192  # pixels along each side of the body frame
REACH = 1.3  # the body frame spans [-REACH, REACH]
X = np.linspace(-REACH, REACH, CANVAS, dtype=np.float32)[None, :]  # 1 w
Y = np.linspace(-REACH, REACH, CANVAS, dtype=np.float32)[:, None]  # h 1
SIDE = np.abs(X)
LEFT = X > 0  # the patient's left


# ---------------------------------------------------------------------------------------- anatomy


@dataclass(frozen=True)
class Anatomy:
    """What stays with a patient from one radiograph to the next; lengths in body units."""

    chest: float  # inner half-width of the rib cage
    apex: float  # y of the lung apices
    dome: float  # y of the right hemidiaphragm at full inspiration
    lift: float  # how much lower the left hemidiaphragm stands
    heart: float  # cardiothoracic ratio when not enlarged
    tilt: float  # heart axis below the horizontal, radians
    knob: float  # how far the aortic arch stands out
    gap: float  # distance between ribs
    phase: float  # where the first rib lies
    drop: float  # how far a posterior rib falls towards the side
    bone: float  # mineral density
    bulk: float  # soft-tissue thickness
    breast: float  # density of the breast shadows, 0 for none
    vessels: float  # prominence of the lung vessels


def draw_anatomy(rng: np.random.Generator) -> Anatomy:
    """A random patient."""
    u = rng.uniform
    return Anatomy(
        # the rib cage
        chest=u(0.62, 0.80),
        apex=u(-0.84, -0.74),
        dome=u(0.30, 0.46),
        lift=u(0.03, 0.09),
        heart=u(0.40, 0.475),
        tilt=u(0.45, 0.85),
        knob=u(0.01, 0.09),
        gap=u(0.125, 0.155),
        phase=u(0, 1),
        drop=u(0.08, 0.26),
        bone=u(0.7, 1.3),
        bulk=u(0.85, 1.3),
        breast=u(0.05, 0.16) if rng.random() < 0.5 else 0.0,
        vessels=u(0.5, 1.3),
    )


@dataclass(frozen=True)
class Chest:
    """The outlines that several layers share, all in the body frame."""

    wall: np.ndarray  # h 1, x of the inner chest wall at each height
    floor: np.ndarray  # 1 w, y of the diaphragm at each side position
    lungs: np.ndarray  # h w, 1 inside the lung fields
    heart: np.ndarray  # h w, chord through the heart, 0 to 1


def _edge(distance: np.ndarray, width: float) -> np.ndarray:
    """A soft step: 0 below -width, 1 above width."""
    t = distance * (0.5 / width)
    t += 0.5
    np.clip(t, 0, 1, out=t)
    return t * t * (3 - 2 * t)


def _ellipse(x: float, y: float, a: float, b: float, angle: float = 0.0) -> np.ndarray:
    """1 - r² of an ellipse with half-axes a, b: positive inside, 1 at the centre."""  # h w
    cos, sin = math.cos(angle), math.sin(angle)
    dx, dy = X - x, Y - y
    along, across = dx * (cos / a) + dy * (sin / a), dy * (cos / b) - dx * (sin / b)
    return 1 - along * along - across * across


def _chord(inside: np.ndarray) -> np.ndarray:
    """The path length through an ellipsoid whose 1 - r² is given."""
    return np.sqrt(np.clip(inside, 0, 1))


def _clouds(rng: np.random.Generator, cells: int) -> np.ndarray:
    """Smooth noise of unit variance or so, `cells` grains along each side."""  # h w
    grains = Image.fromarray(rng.standard_normal((cells, cells), dtype=np.float32))
    return np.asarray(grains.resize((CANVAS, CANVAS), Image.Resampling.BICUBIC))


def _chest(rng: np.random.Generator, body: Anatomy, enlarged: bool) -> Chest:
    breath = rng.uniform(-0.18, 0.06)  # a shallow breath lifts the diaphragm
    wall = _wall(body)
    floor = _floor(body, body.dome + breath)
    medial = np.where(LEFT, 0.13 + body.knob * np.exp(-(((Y + 0.40) / 0.09) ** 2)), 0.14)  # h w
    medial = medial.astype(np.float32) - 0.05 * _edge(-0.55 - Y, 0.15)
    lungs = _edge(wall - SIDE, 0.03) * _edge(SIDE - medial, 0.05) * _edge(floor - Y, 0.025)
    ratio = rng.uniform(0.56, 0.66) if enlarged else body.heart + rng.uniform(-0.02, 0.02)
    return Chest(wall, floor, lungs, _heart(body, ratio, float(floor[LEFT].min())))


def _wall(body: Anatomy) -> np.ndarray:
    height = np.clip((Y - 0.45) / (body.apex - 0.45), 0, 1)  # 0 at the base, 1 at the apex
    return body.chest * (1 - height**2.7) ** 0.48  # h 1


def _floor(body: Anatomy, dome: float) -> np.ndarray:
    """The diaphragm: domes that fall steeply to the sides, the right one higher."""
    top = np.where(LEFT, dome + body.lift, dome)
    away = (SIDE - 0.5 * body.chest) / (0.5 * body.chest)
    return (top + np.where(away > 0, 0.24, 0.10) * away**2).astype(np.float32)  # 1 w


def _heart(body: Anatomy, ratio: float, dome: float) -> np.ndarray:
    """An ellipse whose shadow spans `ratio` of the chest, two thirds of it on the left."""
    cos, sin = math.cos(body.tilt), math.sin(body.tilt)
    half = ratio * body.chest
    a = half / math.hypot(cos, 0.74 * sin)
    rise = a * math.hypot(sin, 0.74 * cos)
    return _chord(_ellipse(0.34 * half, dome + 0.10 - rise, a, 0.74 * a, body.tilt))


# ----------------------------------------------------------------------------------------- layers


def _soft_tissue(body: Anatomy) -> np.ndarray:
    """Trunk, shoulders and neck, thinning towards the skin."""  # h w
    flank = body.chest + 0.16 * body.bulk + 0.75 * _edge(-0.45 - Y, 0.28)  # h 1
    shoulder = -1.22 + 0.42 * SIDE**1.5  # 1 w
    trunk = _chord(1 - (SIDE / (flank + 0.02)) ** 4) * _edge(Y - shoulder, 0.16)
    neck = 0.75 * _chord(1 - (SIDE / 0.30) ** 2) * _edge(-0.7 - Y, 0.3)
    return np.maximum(trunk * (0.78 + 0.22 * _chord(1 - (SIDE / 1.1) ** 2)), neck)


def _ribs(body: Anatomy, wall: np.ndarray) -> np.ndarray:
    """Posterior arcs falling to the side and the fainter anterior ends falling to the middle."""  # h w
    u = np.minimum(SIDE / np.maximum(wall, 0.05), 1.1)
    behind = Y - body.drop * u - 0.20 * u**5
    ahead = Y + (0.30 + body.drop) * u + 0.05 * u**4
    inside = _edge(wall + 0.02 - SIDE, 0.02) * _edge(Y - body.apex + 0.02, 0.04)
    back = _bands(behind, body) * _edge(SIDE - 0.07, 0.03) * _edge(0.75 - Y, 0.3)
    front = _bands(ahead, body) * _edge(u - 0.42, 0.2) * _edge(0.35 - Y, 0.2)
    return inside * (back * (0.8 + 0.7 * u**4) + 0.55 * front)


def _bands(height: np.ndarray, body: Anatomy) -> np.ndarray:
    """One rib every `gap`, brighter along its cortex."""
    wave = np.cos((2 * np.pi) * (height / body.gap + body.phase))
    band = np.clip(wave * 1.6 + 0.25, 0, 1)
    return band * (1.25 - 0.5 * band)


def _shoulder_girdle(rng: np.random.Generator, body: Anatomy) -> np.ndarray:
    """Clavicles, scapulae and humeral heads."""  # h w
    left, right = rng.normal(0, 0.03, 2)
    raised = np.where(LEFT, left, right) - 0.60 + rng.uniform(-0.06, 0.04)
    line = raised - rng.uniform(0.1, 0.3) * (SIDE - 0.07) + 0.03 * np.sin(SIDE * 8)
    line = line.astype(np.float32)
    thick = 0.026 + 0.02 * np.abs(SIDE - 0.42)
    off = np.abs(Y - line)
    clavicle = _edge(thick - off, 0.012) * (0.7 + 0.5 * (off > thick * 0.6))
    clavicle *= _edge(SIDE - 0.07, 0.02) * _edge(0.86 - SIDE, 0.03)

    border = 0.64 + rng.uniform(0, 0.12) + 0.16 * np.abs(Y + 0.35)  # h 1
    scapula = _edge(SIDE - border, 0.015) * _edge(1.0 - SIDE, 0.1) * _edge(-0.05 - Y, 0.12)
    scapula *= _edge(Y + 0.75, 0.05) * (0.6 + 0.8 * (border + 0.05 > SIDE))

    head = _chord(1 - ((SIDE - 1.05) / 0.15) ** 2 - ((Y + 0.66) / 0.15) ** 2)
    shaft = _edge(0.08 - np.abs(SIDE - 1.12), 0.02) * _edge(Y + 0.62, 0.05)
    return clavicle + 0.45 * scapula + 1.1 * np.maximum(head, shaft)


def _spine(body: Anatomy) -> np.ndarray:
    """Vertebral bodies with paler discs between them and the pedicles' eyes."""  # h w
    wave = np.cos((2 * np.pi) * (Y / (body.gap * 1.02) + body.phase))  # h 1
    column = _edge(0.085 + 0.008 * wave - SIDE, 0.015) * (0.75 + 0.25 * np.clip(2 * wave, -1, 1))
    eyes = np.exp(-(((SIDE - 0.05) / 0.016) ** 2)) * np.clip(2 * wave - 1, 0, 1)
    return column + 0.35 * eyes


def _airway() -> np.ndarray:
    """Trachea and main bronchi."""  # h w
    fork = np.maximum(Y + 0.30, 0) * 0.9  # h 1
    return _edge(0.045 - np.abs(SIDE - fork), 0.02) * _edge(-0.12 - Y, 0.08)


def _vessels(rng: np.random.Generator, body: Anatomy) -> np.ndarray:
    """Streaks fanning out from the hila, wiggled and thinning towards the pleura."""  # h w
    table = np.convolve(rng.standard_normal(1024), np.hanning(9) / 2, "same").astype(np.float32)
    dx, dy = SIDE - 0.17, Y - np.where(LEFT, -0.06, 0.0).astype(np.float32)
    far = np.hypot(dx, dy)
    turn = np.arctan2(dy, dx) * 81 + 9 * _clouds(rng, 12) + np.where(LEFT, 256, 768)
    streaks = np.clip(table.take(turn.astype(np.int32), mode="wrap"), 0, None) * np.exp(-2.2 * far)
    hilum = np.exp(-(((dx - 0.02) / 0.08) ** 2) - (dy / 0.17) ** 2)
    return body.vessels * (0.55 * streaks + 1.2 * hilum * (1 + 0.4 * _clouds(rng, 24)))


def _breasts(rng: np.random.Generator, body: Anatomy) -> np.ndarray:
    """Two soft discs with a sharp lower border over the bases."""  # h w
    x, y = rng.uniform(0.36, 0.50), rng.uniform(0.10, 0.34)
    across, down = rng.uniform(0.30, 0.42), rng.uniform(0.26, 0.38)
    disc = 1 - ((SIDE - x) / across) ** 2 - ((Y - y) / down) ** 2
    return body.breast * np.sqrt(_chord(disc)) * _edge(Y - y + 0.8 * down, down)


# --------------------------------------------------------------------------------------- findings


def _opacity(rng: np.random.Generator, chest: Chest) -> np.ndarray:
    """One or two irregular, textured clouds somewhere in the lung fields."""  # h w
    places = np.argwhere(chest.lungs * (1 - chest.heart) > 0.7)
    filled = np.zeros((CANVAS, CANVAS), np.float32)
    for _ in range(rng.integers(1, 3)):
        row, column = places[rng.integers(len(places))]
        a, b = rng.uniform(0.10, 0.24, 2)
        inside = _ellipse(X[0, column], Y[row, 0], a, b, rng.uniform(0, np.pi))
        ragged = _edge(inside + 0.35 * _clouds(rng, 14), 0.9) * np.clip(inside + 1.2, 0, 1)
        filled = np.maximum(filled, rng.uniform(0.35, 0.85) * ragged)
    return np.clip(filled * (1 + 0.1 * _clouds(rng, 40)), 0, 1)


def _effusion(rng: np.random.Generator, chest: Chest, body: Anatomy) -> np.ndarray:
    """Fluid in one costophrenic angle, its meniscus climbing the chest wall."""  # h w
    side = LEFT if rng.random() < 0.5 else ~LEFT
    u = np.minimum(SIDE / body.chest, 1)
    angle = float(chest.floor[side & (body.chest > SIDE)].max())  # y of the angle
    height = rng.uniform(0.16, 0.52)
    level = angle - height + rng.uniform(0.25, 0.5) * height * (1 - u**3) + 0.25 * (1 - u)
    return side * _edge(Y - level, 0.05) * rng.uniform(0.8, 1.0)


def _bubble(rng: np.random.Generator, chest: Chest) -> np.ndarray:
    """Gas in the stomach, under the left dome."""  # h w
    if rng.random() < 0.4:
        return np.zeros((1, 1), np.float32)
    x, a, b = rng.uniform(0.25, 0.45), rng.uniform(0.08, 0.18), rng.uniform(0.05, 0.11)
    y = float(chest.floor[LEFT].min()) + b + 0.05
    return rng.uniform(0.3, 1.0) * _edge(_ellipse(x, y, a, b), 0.3)


def _device(rng: np.random.Generator) -> np.ndarray:
    """A pacemaker with its lead, or a central line."""  # h w
    picture = Image.new("L", (CANVAS, CANVAS))
    pen = ImageDraw.Draw(picture)
    side, jitter = rng.choice([-1.0, 1.0]), rng.uniform(-0.06, 0.06, 2)
    entry = (0.48 * side + jitter[0], -0.48 + jitter[1])
    lead = [entry, (0.3 * side, -0.62), (0.1 * side, -0.55), (-0.1, -0.40), (-0.11, -0.1)]
    if rng.random() < 0.5:
        lead += [(-0.06, 0.15), (0.2, 0.30 + jitter[1])]
        x, y = _pixel(*entry)
        pen.rounded_rectangle((x - 10, y - 8, x + 10, y + 9), 5, fill=210)
    pen.line([_pixel(*point) for point in lead], fill=150, width=2, joint="curve")
    return np.asarray(picture, np.float32) / 255


def _wires(rng: np.random.Generator) -> np.ndarray:
    """Monitoring leads on the skin; they mean nothing."""  # h w
    picture = Image.new("L", (CANVAS, CANVAS))
    pen = ImageDraw.Draw(picture)
    for _ in range(rng.integers(1, 4)):
        x, y = rng.uniform(-0.7, 0.7), rng.uniform(-0.5, 0.3)
        path = [(x, y), (x + rng.normal(0, 0.2), y + 0.4), (rng.uniform(-0.6, 0.6), 1.4)]
        pen.line([_pixel(*point) for point in path], fill=50, width=1, joint="curve")
        column, row = _pixel(x, y)
        pen.ellipse((column - 3, row - 3, column + 3, row + 3), fill=90)
    return np.asarray(picture, np.float32) / 255


def _pixel(x: float, y: float) -> tuple[float, float]:
    scale = (CANVAS - 1) / (2 * REACH)
    return (x + REACH) * scale, (y + REACH) * scale


# --------------------------------------------------------------------------------------- exposure


def _attenuation(rng: np.random.Generator, body: Anatomy, findings: frozenset[str]) -> np.ndarray:
    """The body's attenuation along the beam, about 1 in the mediastinum and 0 in air."""  # h w
    chest = _chest(rng, body, "Cardiomegaly" in findings)

    # air darkens the lungs; findings take some of it away
    air = chest.lungs * (0.62 + 0.38 * _chord(1 - ((SIDE / body.chest - 0.52) / 0.6) ** 2))
    air = air * (1 - 0.8 * chest.heart) * (1 - 0.30 * _vessels(rng, body))
    air *= 1 + 0.04 * _clouds(rng, 60)
    if "Lung Opacity" in findings:
        air *= 1 - _opacity(rng, chest)
    if "Pleural Effusion" in findings:
        air *= 1 - _effusion(rng, chest, body)

    # what lies along the beam adds up
    tissue = _soft_tissue(body) * (1 + 0.03 * _clouds(rng, 7)) + 0.10 * chest.heart
    bone = 0.10 * _ribs(body, chest.wall) + 0.14 * _shoulder_girdle(rng, body) + 0.12 * _spine(body)
    total = body.bulk**0.5 * tissue - 0.60 * air - 0.15 * _airway() - 0.16 * _bubble(rng, chest)
    total += body.bone * bone * (tissue > 0.2) + _breasts(rng, body)

    if DEVICES in findings:
        total += 0.7 * _device(rng)
    if rng.random() < 0.3:
        total += 0.5 * _wires(rng)
    return total


def _place(rng: np.random.Generator, canvas: np.ndarray, height: int, width: int) -> np.ndarray:
    """Put the patient before the detector: shift, scale, stretch and a small rotation."""
    angle, zoom, stretch = rng.normal(0, 0.05), rng.uniform(0.92, 1.24), rng.uniform(0.94, 1.06)
    shift = rng.normal(0, 0.07, 2)
    step = 2 / (min(height, width) * zoom) * (CANVAS - 1) / (2 * REACH)  # canvas pixels per pixel
    cos, sin = np.cos(angle) * step, np.sin(angle) * step
    centre = (CANVAS - 1) / 2 + shift * CANVAS / (2 * REACH)
    matrix = np.array([[cos * stretch, -sin], [sin * stretch, cos]])
    origin = centre - matrix @ (width / 2, height / 2)
    affine = (*matrix[0], origin[0], *matrix[1], origin[1])
    image = Image.fromarray(canvas.astype(np.float32))
    placed = image.transform((width, height), Image.Transform.AFFINE, affine, Image.Resampling.BILINEAR)
    return np.asarray(placed)  # h w


def _expose(rng: np.random.Generator, attenuation: np.ndarray) -> np.ndarray:
    """Quantum noise, grey curve, collimation and marker."""
    height, width = attenuation.shape
    tilt = rng.normal(0, 0.05, 2).astype(np.float32)  # heel effect and uneven grid
    ramp = tilt[0] * np.linspace(-1, 1, width, dtype=np.float32)
    ramp = ramp + tilt[1] * np.linspace(-1, 1, height, dtype=np.float32)[:, None]
    noise = rng.standard_normal((height, width), dtype=np.float32) * rng.uniform(0.008, 0.03)
    seen = attenuation + ramp + noise * np.exp(0.9 * attenuation)
    low, span = rng.uniform(-0.05, 0.22), rng.uniform(0.85, 1.25)
    lit = np.maximum((seen - low) / span, 0) ** rng.uniform(0.9, 1.6)
    grey = lit / np.sqrt(np.sqrt(1 + np.square(lit * lit)))  # a film's shoulder: no hard clipping
    grey = rng.uniform(0.0, 0.08) + rng.uniform(0.82, 0.97) * grey
    return _mark(rng, _collimate(rng, np.clip(grey * 255, 0, 255).astype(np.uint8)))


def _collimate(rng: np.random.Generator, image: np.ndarray) -> np.ndarray:
    """Sometimes the shutters leave dark borders."""
    if rng.random() < 0.7:
        return image
    height, width = image.shape
    top, bottom = (rng.uniform(0, 0.07, 2) * height).astype(int)
    left, right = (rng.uniform(0, 0.07, 2) * width).astype(int)
    framed = np.full_like(image, rng.integers(0, 30))
    inside = np.s_[top : height - bottom, left : width - right]
    framed[inside] = image[inside]
    return framed


def _mark(rng: np.random.Generator, image: np.ndarray) -> np.ndarray:
    """A lead letter beside the shoulder it names: R on the image's left, L on its right."""
    height, width = image.shape
    letter = "R" if rng.random() < 0.6 else "L"
    x, y = rng.uniform(0.03, 0.14), rng.uniform(0.04, 0.2)
    picture = Image.fromarray(image)
    size = float(rng.uniform(10, 16))
    across = x * width if letter == "R" else (1 - x) * width - size
    ink = int(rng.integers(170, 256))
    ImageDraw.Draw(picture).text((across, y * height), letter, fill=ink, font_size=size)
    return np.asarray(picture)


def draw_radiograph(
    rng: np.random.Generator,
    findings: frozenset[str],
    height: int,
    width: int,
    anatomy: Anatomy | None = None,
) -> np.ndarray:
    """One frontal radiograph, uint8 (height width), the patient's right on the image's left.

    `findings` are names from `FINDINGS`, and "Support Devices" for a pacemaker or a line. A patient
    seen before is drawn again by passing their `anatomy`; otherwise `rng` makes a new one.
    Raises ValueError for a finding that cannot be drawn.
    """
    unknown = findings - {*FINDINGS, DEVICES}
    if unknown:
        raise ValueError(f"cannot draw {sorted(unknown)}; known are {sorted((*FINDINGS, DEVICES))}")
    body = draw_anatomy(rng) if anatomy is None else anatomy
    return _expose(rng, _place(rng, _attenuation(rng, body, findings), height, width))


def draw_lateral(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """A crude lateral view, uint8 (height width), sternum on the left, spine on the right."""
    u = rng.uniform
    trunk = _edge(_ellipse(0.0, 0.25, u(0.74, 0.88), 1.5), 0.3)
    lung = _edge(_ellipse(0.02, -0.10, u(0.54, 0.64), 0.78, 0.12), 0.25)
    lung *= _edge(u(0.30, 0.42) + 0.35 * (X - 0.1) + 0.6 * (X + 0.1) ** 2 - Y, 0.03)
    heart = _chord(_ellipse(-0.24, 0.22, u(0.30, 0.36), 0.25, 0.9))
    spine = _edge(0.09 - np.abs(X - 0.46 - 0.1 * Y * Y), 0.03) * (1 + 0.4 * np.cos(Y * 42))
    ribs = np.clip(np.cos(44 * (Y - 0.35 * (X - 0.4) ** 2)), 0, 1) * lung
    total = 1.05 * trunk - 0.55 * lung * (1 - 0.6 * heart) + 0.12 * spine * trunk + 0.04 * ribs
    return _expose(rng, _place(rng, total, height, width))
