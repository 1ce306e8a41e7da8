"""The normal anatomy of a synthetic chest: its measures in millimetres, and a grid of voxels to paint it on.

These are phantoms, drawn by formulas; no patient is behind them. `sample_chest` draws the measures, `paint_anatomy` and
`paint_lung_vessels` put them on a `Canvas`; findings.py adds what is wrong, phantom.py makes the volume.

Body frame: origin in the middle of the chest, x to the patient's left, y to the back, z to the head, mm.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np

AIR, FAT, MUSCLE, BLOOD, BONE, LUNG = -1000, -100, 55, 42, 550, -835  # HU
RIGHT, LEFT = -1, 1  # the sign of x

Box = tuple[slice, slice, slice]
EVERYWHERE: Box = (slice(None), slice(None), slice(None))


def ball_points(number: int) -> np.ndarray:
    """(number, 3) points spread evenly in the unit ball: a Fibonacci spiral on shells of equal volume."""
    k = np.arange(number) + 0.5
    z, turn, radius = 1 - 2 * k / number, np.pi * (1 + 5**0.5) * k, (k * 0.618 % 1) ** (1 / 3)
    ring = np.sqrt(1 - z**2)
    return radius[:, None] * np.stack([ring * np.cos(turn), ring * np.sin(turn), z], axis=1)


def curve(start: np.ndarray, bend: np.ndarray, end: np.ndarray, steps: int = 40) -> np.ndarray:
    """Quadratic Bézier curves (N, steps, 3) from `start` to `end`, pulled towards `bend`; each (N, 3) or (3,)."""
    t = np.linspace(0, 1, steps)[:, None]
    start, bend, end = (np.atleast_2d(points)[:, None] for points in (start, bend, end))
    return (1 - t) ** 2 * start + 2 * t * (1 - t) * bend + t**2 * end


class Canvas:
    """Voxels (Z, Y, X) in HU on which shapes of the body frame are painted, with soft edges about a voxel wide."""

    def __init__(
        self, shape: Sequence[int], spacing: Sequence[float], centre: Sequence[float] = (0, 0, 0), turn: float = 0
    ):
        """`spacing` mm (z, y, x); `centre` of the grid, mm (z, y, x) off the body's; the body is turned by `turn`
        degrees about its long axis."""
        self.hu = np.full(shape, AIR, np.float32)
        self.lung = np.zeros(shape, np.float32)  # share of lung in a voxel, 0-1
        self.depth = np.full(shape, -50, np.float32)  # mm from the pleura, about; negative outside of the lungs
        self.spacing = np.array(spacing[::-1], float)  # x, y, z
        self.start = np.array(centre[::-1]) - (np.array(shape[::-1]) - 1) / 2 * self.spacing
        self.axes = [self.start[a] + self.spacing[a] * np.arange(shape[2 - a]) for a in range(3)]
        cos, sin = np.cos(np.deg2rad(turn)), np.sin(np.deg2rad(turn))
        self.to_grid = np.array([[cos, -sin, 0], [sin, cos, 0], [0, 0, 1]])
        x, y = np.meshgrid(self.axes[0], self.axes[1])
        self.x = (cos * x + sin * y)[None].astype(np.float32)  # (1, Y, X) mm
        self.y = (cos * y - sin * x)[None].astype(np.float32)  # (1, Y, X) mm
        self.z = self.axes[2][:, None, None].astype(np.float32)  # (Z, 1, 1) mm

    def away(self, box: Box, centre: Sequence[float], radii: Sequence[float]) -> np.ndarray:
        """How far a box's voxels lie from the middle of an ellipsoid: 0 there, 1 on its surface."""
        squares = (((p - c) / r) ** 2 for p, c, r in zip(self.place(box), centre, radii, strict=True))
        return np.sqrt(sum(squares))

    def box(self, centre: Sequence[float], reach: Sequence[float]) -> Box:
        """The voxels within `reach` mm (x, y, z) of a point, and one more on each side; may be empty."""
        middle = (self.to_grid @ np.asarray(centre, float) - self.start) / self.spacing
        first = np.ceil(middle - np.asarray(reach) / self.spacing - 1).astype(int)
        last = np.floor(middle + np.asarray(reach) / self.spacing + 2).astype(int)
        sizes = self.hu.shape[::-1]
        x, y, z = (slice(max(first[a], 0), max(min(last[a], sizes[a]), 0)) for a in range(3))
        return z, y, x

    def to_wall(self) -> np.ndarray:
        """The lungs' share for what fills them up to the chest wall: 1 in the voxels that lung and wall have in common,
        which would stay dark otherwise."""
        return np.minimum(4 * self.lung, 1)

    def place(self, box: Box) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """x, y (1, y, x) and z (z, 1, 1) of a box's voxels, mm in the body frame."""
        z, y, x = box
        return self.x[:, y, x], self.y[:, y, x], self.z[z]

    def edge(self, distance: np.ndarray) -> np.ndarray:
        """The share of a voxel that a shape fills whose surface is `distance` mm away; positive inside."""
        return np.clip(0.5 + distance / self.spacing[0], 0, 1)

    def blend(self, box: Box, cover: np.ndarray, value, within: np.ndarray | None = None) -> None:
        """Moves a box's voxels to `value` HU by the share `cover`, times that of `within` (Z, Y, X)."""
        if within is not None:
            cover = cover * within[box]
        view = self.hu[box]
        view += cover * (value - view)

    def ellipsoid(self, centre, radii, value: float, within: np.ndarray | None = None, turn: float = 0) -> None:
        """An ellipsoid; `radii` mm (x, y, z) before it is turned by `turn` degrees in the axial plane."""
        longest = max(radii[:2])
        box = self.box(centre, (longest, longest, radii[2]))
        x, y, z = self.place(box)
        cos, sin = np.cos(np.deg2rad(turn)), np.sin(np.deg2rad(turn))
        x, y = x - centre[0], y - centre[1]
        plane = ((cos * x + sin * y) / radii[0]) ** 2 + ((cos * y - sin * x) / radii[1]) ** 2
        inside = (1 - np.sqrt(plane + ((z - centre[2]) / radii[2]) ** 2)) * min(radii)
        self.blend(box, self.edge(inside), value, within)

    def balls(self, centres: np.ndarray, radii, value: float, within: np.ndarray | None = None, volumes=None) -> None:
        """Many balls at once: `centres` (N, 3), `radii` (N,) mm. Each is a cloud of points whose volumes are shared out
        among the voxels around them, so that a ball smaller than a voxel is as bright as its volume makes it."""
        centres = np.reshape(centres, (-1, 3))
        radii = np.broadcast_to(np.asarray(radii, float), len(centres))
        volumes = 4 / 3 * np.pi * radii**3 if volumes is None else volumes
        largest = radii.max()
        cloud = ball_points(8 if largest < 4.5 else 32 if largest < 9 else 96)
        points = (centres[:, None] + radii[:, None, None] * cloud).reshape(-1, 3)
        points = np.einsum("ij,pj->ip", self.to_grid, points)  # (3, P): x, y, z
        index = (points - self.start[:, None]) / self.spacing[:, None]
        low = np.maximum(np.floor(index.min(1)).astype(int), 0)
        high = np.minimum(np.floor(index.max(1)).astype(int) + 2, self.hu.shape[::-1])
        size = high - low
        if (size < 2).any():
            return
        whole = np.floor(index)
        part, whole = index - whole, whole.astype(int) - low[:, None]
        inner = ((whole >= 0) & (whole < size[:, None] - 1)).all(0)
        weight = np.repeat(volumes / (len(cloud) * self.spacing.prod()), len(cloud)) * inner
        flat = np.where(inner, (whole[2] * size[1] + whole[1]) * size[0] + whole[0], 0)
        cover = np.zeros(size.prod())
        for x, y, z in np.ndindex(2, 2, 2):  # the eight voxels around each point share its volume
            share = weight * (part[0] if x else 1 - part[0])
            share *= part[1] if y else 1 - part[1]
            share *= part[2] if z else 1 - part[2]
            cover += np.bincount(flat + (z * size[1] + y) * size[0] + x, share, minlength=len(cover))
        cover = np.minimum(cover, 1).astype(np.float32).reshape(size[::-1])
        self.blend(tuple(slice(a, b) for a, b in zip(low[::-1], high[::-1], strict=True)), cover, value, within)

    def tubes(self, paths: np.ndarray, radii, value: float, within: np.ndarray | None = None) -> None:
        """Tubes along `paths` (N, S, 3), `radii` mm (S,) along each or one for all."""
        paths = np.reshape(paths, (-1, *np.shape(paths)[-2:]))
        steps = np.linalg.norm(np.diff(paths, axis=1, append=2 * paths[:, -1:] - paths[:, -2:-1]), axis=-1)
        radii = np.broadcast_to(np.asarray(radii, float), paths.shape[:2])
        # A ball's cloud is thinner at its rim than a disc's; a third more volume makes up for it.
        volumes = 1.33 * np.pi * radii**2 * steps
        self.balls(paths, radii.ravel(), value, within, volumes.ravel())

    def field(self, rng: np.random.Generator, period: float) -> np.ndarray:
        """A smooth random field (Z, Y, X), mean 0, deviation about 1, that changes over `period` mm; the same in mm
        whatever the grid."""
        nodes = np.arange(-220, 221, period)
        bumps = [np.exp(-(((axis[:, None] - nodes) / (0.75 * period)) ** 2)) for axis in self.axes]
        x, y, z = ((bump / np.linalg.norm(bump, axis=1, keepdims=True)).astype(np.float32) for bump in bumps)
        values = rng.standard_normal((len(nodes),) * 3, np.float32)
        # One axis after the other, and by einsum: BLAS would start threads in each of the processes that draw.
        return np.einsum("zk,kyx->zyx", z, np.einsum("yj,kjx->kyx", y, np.einsum("xi,kji->kjx", x, values)))


@dataclass
class Chest:
    """The measures of one chest, mm in the body frame."""

    width: float  # half of the inner thorax, where it is widest
    front: float  # half of a lung, front to back
    apex: float  # z of the lungs' tops
    floor: dict[int, float]  # side -> z of the costophrenic angle
    dome: dict[int, float]  # side -> height of the diaphragm's dome above it
    fat: float  # under the skin
    heart: np.ndarray  # centre (3,)
    heart_radii: np.ndarray  # long axis (to the left and the front), short axis, height
    heart_turn: float  # degrees
    pericardium: float  # thickness of the fluid around the heart; 0 = normal
    collapsed: int  # the side of a collapsed lung base
    aorta: float  # radius
    bronchi: np.ndarray  # paths (N, S, 3) from the hila outwards
    vessels: np.ndarray  # paths (N, S, 3)

    @property
    def lung_radii(self) -> tuple[float, float]:
        """Half a lung's width and depth where they are greatest."""
        return 0.46 * self.width, self.front

    def lung_axis(self, side: int, z):
        """x and y of a lung's axis, and its width as a share of the greatest, at the heights z."""
        t = np.clip((z - 10) / (self.apex - 10), 0, 1)
        return side * (0.54 * self.width - 14 * t**2), 4 + 6 * t, np.sqrt(np.maximum(1 - t**2.4, 0))

    def diaphragm(self, side: int, x, y):
        """z of the diaphragm at (x, y)."""
        a, b = self.lung_radii
        u, v = (x - side * 0.54 * self.width) / a, (y - 4) / b
        return self.floor[side] + self.dome[side] * (1 - 0.9 * np.minimum(u**2 + (v + 0.15) ** 2, 1.2))

    def in_lung(self, side: int, height: float, radius: float, angle: float) -> np.ndarray:
        """A point (3,) in a lung: `height` 0 (on the diaphragm's rim) to 1 (apex), `radius` 0 (axis) to 1 (pleura), and
        `angle` in degrees from 0 (lateral) over 90 (back) and 180 (medial) to 270 (front)."""
        z = self.floor[side] + height * (self.apex - self.floor[side])
        x, y, scale = self.lung_axis(side, z)
        a, b = self.lung_radii
        angle = np.deg2rad(angle)
        point = np.array([x + side * radius * a * scale * np.cos(angle), y + radius * b * scale * np.sin(angle), z])
        point[2] = max(z, self.diaphragm(side, *point[:2]) + 6)
        return point

    def random_points(
        self, rng: np.random.Generator, number: int, heights=(0.05, 0.95), radii=(0.1, 0.9), angles=(-110, 110), side=0
    ) -> np.ndarray:
        """(number, 3) points in the lungs (`side` 0: in both), away from the mediastinum for the default angles."""
        rows = []
        for _ in range(number):
            which, height, share, angle = rng.integers(2), rng.uniform(*heights), rng.random(), rng.uniform(*angles)
            radius = np.sqrt(radii[0] ** 2 + share * (radii[1] ** 2 - radii[0] ** 2))
            rows.append(self.in_lung(side or (RIGHT, LEFT)[which], height, radius, angle))
        return np.array(rows)

    def hilum(self, side: int) -> np.ndarray:
        """Centre (3,) of a hilum, mm."""
        return np.array([side * 34.0, 8.0, 22.0 + 5 * side])


def sample_chest(rng: np.random.Generator, findings: Collection[str] = ()) -> Chest:
    """Draws the measures. The findings that change a normal organ's size (heart, diaphragm) do so here, and take no
    random numbers of their own: a chest with and without them is the same in all else."""
    size, hyperinflated, cardiac, collapse, rim = rng.normal(1, 0.045), rng.uniform(), rng.uniform(), *rng.random(2)
    size = np.clip(size, 0.9, 1.09)
    emphysema = "Emphysema" in findings
    inflation = 18 + 10 * hyperinflated if emphysema else 0
    floor = {side: (rng.normal(-88, 6) - 0.5 * inflation) * size for side in (RIGHT, LEFT)}
    dome = {side: rng.normal(46, 4) + (3 if side == RIGHT else -3) - inflation for side in (RIGHT, LEFT)}
    collapsed = RIGHT if collapse < 0.5 else LEFT
    if "Atelectasis" in findings:
        floor[collapsed] += 30
    width = 119 * size
    share = 0.60 + 0.08 * cardiac if "Cardiomegaly" in findings else 0.40 + 0.075 * cardiac
    turn = rng.uniform(-42, -30)
    long = share * width / np.hypot(np.cos(np.deg2rad(turn)), 0.68 * np.sin(np.deg2rad(turn)))
    chest = Chest(
        width=width,
        front=(77 + 0.3 * inflation) * size,
        apex=rng.normal(118, 5) * size,
        floor=floor,
        dome=dome,
        fat=rng.uniform(9, 20),
        heart=np.array([10 + 0.16 * long, -22 + 0.05 * long, -34 + rng.normal(0, 3)]),
        heart_radii=np.array([1, 0.68, 0.80]) * long,
        heart_turn=turn,
        pericardium=14 + 5 * rim if "Pericardial effusion" in findings else 0,
        collapsed=collapsed,
        aorta=rng.uniform(12.5, 15),
        bronchi=np.empty(0),
        vessels=np.empty(0),
    )
    chest.bronchi = np.concatenate([_tree(chest, rng, side, 11, (0.5, 0.8)) for side in (RIGHT, LEFT)])
    chest.vessels = np.concatenate([_tree(chest, rng, side, 46, (0.75, 0.97)) for side in (RIGHT, LEFT)])
    return chest


def _tree(chest: Chest, rng: np.random.Generator, side: int, number: int, radii: tuple[float, float]) -> np.ndarray:
    """Paths (number, 40, 3) from the hilum to ends all over the lung, in bundles that part on the way."""
    ends = chest.random_points(rng, number, (0.02, 0.96), radii, (-125, 125), side)
    trunks = np.array([chest.in_lung(side, height, 0.2, angle)
                       for height in (0.15, 0.4, 0.6, 0.8) for angle in (-90, 90)])  # fmt: skip
    nearest = np.linalg.norm(ends[:, None] - trunks, axis=-1).argmin(1)
    hilum = chest.hilum(side)
    return curve(hilum, 0.4 * hilum + 0.6 * trunks[nearest] + rng.normal(0, 4, ends.shape), ends)


# ------------------------------------------------------------------------------------------------------------ painting


def paint_anatomy(canvas: Canvas, chest: Chest, rng: np.random.Generator) -> None:
    """All but the vessels of the lungs, which come later: some findings lie behind them."""
    cavity = paint_torso(canvas, chest)
    paint_lungs(canvas, chest, rng)
    paint_mediastinum(canvas, chest, cavity)


def paint_torso(canvas: Canvas, chest: Chest) -> np.ndarray:
    """Skin, fat, muscle, the organs under the diaphragm and the couch. Returns the cavity's share (Z, Y, X) of each
    voxel, 0-1: what lies within the ribs."""
    x, y, z = canvas.x, canvas.y, canvas.z
    half_width, half_depth = chest.width + 6, chest.front + 12
    wall = 16
    squares = [((x / (half_width + r)) ** 2, ((y - 8) / (half_depth + r)) ** 2) for r in (wall + chest.fat, wall)]
    skin, muscle = ((1 - np.sqrt(u + v - 0.35 * np.minimum(u * v, 1))) * half_depth for u, v in squares)
    canvas.blend(EVERYWHERE, canvas.edge(skin), FAT)
    canvas.blend(EVERYWHERE, canvas.edge(muscle), MUSCLE)
    scale = np.sqrt(np.maximum(1 - np.clip((z - 10) / (chest.apex + 8 - 10), 0, 1) ** 2.4, 0.02))
    cavity = np.sqrt((x / half_width) ** 2 + ((y - 5) / half_depth) ** 2)
    cavity = canvas.edge((scale - cavity) * half_depth)
    canvas.blend(EVERYWHERE, cavity, FAT)

    right, left = ([side * 0.54 * chest.width, 4, chest.floor[side] + chest.dome[side]] for side in (RIGHT, LEFT))
    canvas.ellipsoid((right[0] + 8, 2, right[2] - 62), (78, 74, 66), 62, cavity)  # liver
    canvas.ellipsoid((left[0] + 8, 34, left[2] - 52), (32, 40, 46), 52, cavity)  # spleen
    stomach = np.array([left[0] - 12, -26, left[2] - 40])
    canvas.ellipsoid(stomach, (42, 36, 36), 45, cavity)
    canvas.ellipsoid(stomach, (38, 32, 32), 20, cavity)
    canvas.ellipsoid(stomach - [0, 14, 0], (28, 17, 24), -950, cavity)
    for side in (RIGHT, LEFT):
        canvas.ellipsoid((side * 52, 48, -150), (26, 26, 45), 35, cavity)  # kidneys
        canvas.ellipsoid((side * 62, -half_depth - 6, 45), (44, 11, 45), MUSCLE)  # pectoral muscle
        canvas.ellipsoid((side * 98, 72, 55), (30, 5, 48), BONE, turn=side * -52)  # scapula

    table_x, table_y = (axis - axis.mean() for axis in (canvas.axes[0][None, None, :], canvas.axes[1][None, :, None]))
    bottom = 8 + half_depth + wall + chest.fat + 4  # the couch does not turn with the body
    shell = np.abs(table_y - bottom + 0.0007 * table_x**2) - 2.5
    canvas.blend(EVERYWHERE, canvas.edge(-shell) * (np.abs(table_x) < 165), 150)
    return cavity


def paint_lungs(canvas: Canvas, chest: Chest, rng: np.random.Generator) -> None:
    """Both lungs as air-filled tissue, and their share and depth on the canvas. The dependent parts are denser."""
    a, b = chest.lung_radii
    for side in (RIGHT, LEFT):
        middle = (chest.apex + chest.floor[side]) / 2
        box = canvas.box((side * chest.width / 2, 4, middle), (chest.width / 2 + 12, b + 12, chest.apex - middle + 3))
        x, y, z = canvas.place(box)
        axis_x, axis_y, scale = chest.lung_axis(side, z)
        scale = np.maximum(scale, 0.05)
        u = np.minimum(((x - axis_x) / (a * scale)) ** 2, 2)
        v = np.minimum(((y - axis_y) / (b * scale)) ** 2, 2)
        inside = (1 - np.sqrt(u + v - 0.35 * u * v)) * (a * scale)  # a little fuller than an ellipse
        inside = np.minimum(inside, 0.8 * (z - chest.diaphragm(side, x, y)))
        inside = np.where(x * side > 0, inside, -50)
        canvas.depth[box] = np.maximum(canvas.depth[box], inside)
    diaphragm = canvas.edge(canvas.depth + 4) * (canvas.z < 0)
    canvas.blend(EVERYWHERE, diaphragm, MUSCLE)
    canvas.lung = canvas.edge(canvas.depth)
    canvas.blend(EVERYWHERE, canvas.lung, LUNG + 12 * canvas.field(rng, 40) + 0.25 * canvas.y)


def paint_mediastinum(canvas: Canvas, chest: Chest, cavity: np.ndarray) -> None:
    """Heart, great vessels, airways, oesophagus, and the bones around; then the lungs are what is still air."""
    canvas.ellipsoid((0, -12, 62), (27, 46, 55), FAT, cavity)  # keeps the lungs apart
    canvas.ellipsoid((0, 10, 0), (24, 50, 90), FAT, cavity)
    thick = chest.pericardium
    if thick:
        layers = ((thick + 3, MUSCLE), (thick, 8), (5, FAT), (0, BLOOD))  # pericardium, fluid, fat, heart
    else:
        layers = ((0, BLOOD),)
    for layer, value in layers:
        canvas.ellipsoid(chest.heart, chest.heart_radii + layer, value, cavity, chest.heart_turn)

    for side in (RIGHT, LEFT):
        hilum = chest.hilum(side)
        canvas.tubes(curve((side * 8, -8, 16), hilum, hilum + [side * 14, 4, -14]), np.linspace(11, 6, 40), BLOOD)
    canvas.tubes(curve((-22, -14, -20), (-26, -16, 40), (-18, -22, 128), 60), 8, BLOOD)  # superior vena cava
    canvas.tubes(aorta_path(), chest.aorta, BLOOD)
    for x, y in ((-8, -16), (10, -10)):  # arteries to the head
        canvas.tubes(curve((x, y, 70), (x, y, 100), (2.2 * x, y, 140), 30), 5, BLOOD)
    canvas.tubes(curve((4, 34, 150), (6, 36, 0), (12, 20, -90), 90), 6, MUSCLE)  # oesophagus

    y = chest.front + 4  # sternum
    box = canvas.box((0, -y, 25), (22, 8, 62))
    plate = np.minimum(np.minimum(19 - np.abs(canvas.place(box)[0]), 5.5 - np.abs(canvas.place(box)[1] + y)), 60)
    canvas.blend(box, canvas.edge(plate) * (np.abs(canvas.place(box)[2] - 25) < 58), 300)
    _paint_spine(canvas)
    _paint_ribs(canvas, chest)

    canvas.lung *= np.clip((-450 - canvas.hu) / 250, 0, 1)
    windpipe = curve((0, 12, 155), (0, 14, 90), (0, 16, 40), 60)
    main = [curve((0, 16, 42), (side * 12, 14, 32), chest.hilum(side), 30) for side in (RIGHT, LEFT)]
    for wall, value in ((2, MUSCLE), (0, AIR)):
        canvas.tubes(windpipe, 9 + wall, value)
        for path in main:
            canvas.tubes(path, 6 + wall, value)


def aorta_path() -> np.ndarray:
    """(1, S, 3): up from the heart, over the left main bronchus, down beside the spine."""
    up = curve((-2, -12, -20), (-18, -30, 20), (-14, -26, 50), 40)
    arch = curve((-14, -26, 50), (2, -10, 84), (22, 34, 50), 60)
    down = curve((22, 34, 50), (27, 46, 20), (16, 44, -170), 100)
    return np.concatenate([up[:, :-1], arch[:, :-1], down], axis=1)  # each point once


def _paint_spine(canvas: Canvas) -> None:
    box = canvas.box((0, 74, 0), (40, 46, 1e4))
    x, y, z = canvas.place(box)
    body = (1 - np.sqrt((x / 18) ** 2 + ((y - 62) / 15) ** 2)) * 15
    phase = np.abs((z / 25) % 1 - 0.5)  # 0.5 in the middle of a disc
    marrow = np.where(body > 3, 190, BONE) + 0 * z
    canvas.blend(box, canvas.edge(body) * (phase < 0.42), marrow)
    canvas.blend(box, canvas.edge(body) * (phase >= 0.42), 90)
    canal = np.sqrt(x**2 + (y - 86) ** 2)
    arch = np.minimum(13 - canal, canal - 8) + 0 * z
    canvas.blend(box, canvas.edge(arch), 420)
    canvas.blend(box, canvas.edge(8 - canal) + 0 * z, 25)
    spine = np.minimum(3.5 - np.abs(x), 14 - np.abs(y - 106))
    transverse = np.minimum(4 - np.abs(y - 84), 32 - np.abs(x)) - np.where(np.abs(x) < 12, 50, 0)
    canvas.blend(box, canvas.edge(np.maximum(spine, transverse)) * (phase < 0.3), 420)


def _paint_ribs(canvas: Canvas, chest: Chest) -> None:
    """Ten pairs: each runs along a lung from the spine around the side, and falls towards the front."""
    a, b = chest.lung_radii
    angle = np.deg2rad(np.linspace(118, -80, 110))  # as in Chest.in_lung
    for side in (RIGHT, LEFT):
        paths = []
        for number in range(10):
            z = chest.apex + 2 - 25 * number - 62 * (1 - np.sin(angle)) / 2
            x, y, scale = chest.lung_axis(side, np.minimum(z, chest.apex - 12))
            out = 7.5
            u, v = np.cos(angle), np.sin(angle)
            paths.append(np.stack([x + side * (a * scale + out) * u, y + (b * scale + out) * v, z], axis=-1))
        canvas.tubes(np.array(paths), 3.8, 800)


def paint_lung_vessels(canvas: Canvas, chest: Chest) -> None:
    """Vessels that taper towards the pleura, and bronchi whose walls are too thin to stand out."""
    canvas.tubes(chest.vessels, np.linspace(3.7, 1.3, chest.vessels.shape[1]), BLOOD, canvas.lung)
    canvas.tubes(chest.bronchi, np.linspace(2.2, 0.8, chest.bronchi.shape[1]), AIR, canvas.lung)
