"""What is wrong in a synthetic chest: one painter a finding, in the names of ct.labels.LABELS.

Each has a plain, schematic look that spans many slices, and varies in place, size and number. None of it was taken from
a patient. Cardiomegaly, pericardial effusion, and the size of the lungs in emphysema and atelectasis are measures of
the anatomy: see ct.demo.anatomy.sample_chest.
"""

import numpy as np

from ct.demo.anatomy import AIR, EVERYWHERE, LEFT, MUSCLE, RIGHT, Canvas, Chest, aorta_path, curve

CALCIUM, METAL = 1300, 3000  # HU


def medical_material(canvas: Canvas, chest: Chest, rng: np.random.Generator) -> None:
    """A pacemaker with two leads into the right heart, or the wires of a sternotomy and a central catheter."""
    if rng.random() < 0.6:
        side = LEFT if rng.random() < 0.8 else RIGHT
        box = np.array([side * rng.uniform(66, 80), -chest.front - 14, rng.uniform(52, 68)])
        canvas.ellipsoid(box, (25, 9, 25), METAL)
        tip = chest.heart + [[-0.35, -0.1, -0.3], [0.45, -0.35, -0.55]] * chest.heart_radii
        canvas.tubes(curve(box, (side * 40, -34, 112), (-20, -18, 84)), 2.6, METAL)
        canvas.tubes(curve((-20, -18, 84), (-34, -20, 10), tip), 2.6, METAL)
    else:
        y = -chest.front - 4
        turn = np.linspace(0, 2 * np.pi, 40)
        for z in np.arange(-25, 80, 17) + rng.uniform(-4, 4):
            wire = np.stack([12 * np.cos(turn), y + 7 * np.sin(turn), z + 4 * np.cos(turn)], axis=-1)
            canvas.tubes(wire, 2.4, METAL)
        start = (rng.choice([-1, 1]) * 60, -40, 110)
        canvas.tubes(curve(start, (-18, -16, 112), (-24, -18, 70)), 2.4, METAL)
        canvas.tubes(curve((-24, -18, 70), (-26, -18, 40), (-22, -18, 0)), 2.4, METAL)


def arterial_calcification(canvas: Canvas, chest: Chest, rng: np.random.Generator) -> None:
    """Plaques on the wall of the aorta, most of them on the arch and the descending part."""
    path, number = aorta_path()[0], rng.integers(90, 130)
    at = rng.integers(25, len(path) - 12, number)
    normal = rng.normal(size=(number, 3))
    along = path[at + 1] - path[at]
    along /= np.linalg.norm(along, axis=1, keepdims=True)
    normal -= (normal * along).sum(1, keepdims=True) * along
    normal /= np.linalg.norm(normal, axis=1, keepdims=True)
    canvas.balls(path[at] + chest.aorta * normal, rng.uniform(3.2, 5.2, number), CALCIUM)


def coronary_calcification(canvas: Canvas, chest: Chest, rng: np.random.Generator) -> None:
    """Bright tracks over the heart: the left anterior descending, the circumflex, the right coronary artery."""
    turn = np.deg2rad(chest.heart_turn)
    to_body = np.array([[np.cos(turn), -np.sin(turn), 0], [np.sin(turn), np.cos(turn), 0], [0, 0, 1]])
    for longitude, drift in ((-75, 60), (55, -40), (-130, -25)):
        start, latitude = rng.uniform(-8, 8), np.deg2rad(np.linspace(rng.uniform(48, 58), rng.uniform(-35, -15), 60))
        longitude = np.deg2rad(longitude + start + drift * np.linspace(0, 1, 60))
        unit = np.stack([np.cos(latitude) * np.cos(longitude), np.cos(latitude) * np.sin(longitude),
                         np.sin(latitude)], axis=-1)  # fmt: skip
        path = chest.heart + (0.97 * chest.heart_radii * unit) @ to_body.T
        kept = np.repeat(rng.random(12) < 0.85, 5)  # calcified in parts
        canvas.balls(path[kept], 3.8, CALCIUM)


def hiatal_hernia(canvas: Canvas, chest: Chest, rng: np.random.Generator) -> None:
    """The stomach's upper part behind the heart, with air over fluid (the patient lies on the back)."""
    centre = np.array([rng.uniform(-6, 14), rng.uniform(26, 32), rng.uniform(-62, -48)])
    radii = np.array([rng.uniform(31, 38), 23, rng.uniform(38, 46)])
    canvas.ellipsoid(centre, radii, MUSCLE + 5)
    canvas.ellipsoid(centre, radii - 5, 22)
    level = centre[1] + rng.uniform(-2, 6)
    box = canvas.box(centre, radii)
    inside = (1 - canvas.away(box, centre, radii - 5)) * 18
    canvas.blend(box, canvas.edge(np.minimum(inside, level - canvas.place(box)[1])), AIR)


def lymphadenopathy(canvas: Canvas, chest: Chest, rng: np.random.Generator) -> None:
    """Enlarged nodes: both armpits, beside the windpipe, at the hila, under the carina."""
    for side in (RIGHT, LEFT):
        for z in (78, 58, 38, 18):
            centre = (side * (chest.width + 17 + rng.uniform(-3, 5)), rng.uniform(-38, 22), z + rng.uniform(-6, 6))
            canvas.ellipsoid(centre, rng.uniform(11, 16, 3), MUSCLE)
        for z in (82, 56):
            radius = rng.uniform(13, 18)
            canvas.ellipsoid((side * rng.uniform(26, 34), rng.uniform(-12, 18), z), (radius, radius, 16), MUSCLE)
        canvas.ellipsoid(chest.hilum(side) + [side * 12, 4, 0], rng.uniform(16, 22, 3), MUSCLE)


def emphysema(canvas: Canvas, chest: Chest, rng: np.random.Generator) -> None:
    """Holes without walls, many of them large, mostly in the upper lobes; the lungs are overinflated."""
    canvas.blend(EVERYWHERE, 0.2 * canvas.lung, AIR)
    for centre in chest.random_points(rng, 110, (0.2, 0.97), (0, 0.97), (0, 360)):
        canvas.ellipsoid(centre, rng.uniform(7, 16, 3), -1010, canvas.lung)
    bullae = chest.random_points(rng, 9, (0.45, 0.95), (0.75, 0.95), (-100, 60))
    for centre in bullae:
        radius = rng.uniform(15, 24)
        canvas.ellipsoid(centre, (radius,) * 3, -400, canvas.lung)
        canvas.ellipsoid(centre, (radius - 3,) * 3, AIR, canvas.lung)


def atelectasis(canvas: Canvas, chest: Chest, rng: np.random.Generator) -> None:
    """A wedge of airless lung between hilum, spine and a raised diaphragm, and plates across the bases."""
    side = chest.collapsed
    box = canvas.box((side * 60, 30, -30), (70, 90, 75))
    x, y, z = canvas.place(box)
    grown = np.clip((rng.uniform(20, 32) - z) / 70, 0, 1)
    reach = grown * rng.uniform(58, 70)
    wedge = reach - (side * x - 10) - 0.55 * np.abs(y - 62)
    canvas.blend(box, canvas.edge(np.minimum(wedge, y - 4)), MUSCLE, canvas.to_wall())
    for each in (side, side, side, -side, -side):
        tilt = np.deg2rad(rng.uniform(35, 60))
        centre = chest.in_lung(each, rng.uniform(0.22, 0.42), 0.25, rng.uniform(-120, -40))
        box = canvas.box(centre, (50, 50, 50))
        x, y, z = canvas.place(box)
        across = np.sin(tilt) * (y - centre[1]) + np.cos(tilt) * (z - centre[2]) + 0.15 * (x - centre[0])
        extent = 50 - canvas.away(box, centre, (1, 1, 1))
        canvas.blend(box, canvas.edge(np.minimum(4 - np.abs(across), extent)), MUSCLE, canvas.lung)


def lung_nodules(canvas: Canvas, chest: Chest, rng: np.random.Generator) -> None:
    """Sixteen to twenty-four solid balls, 14 to 28 mm across, most of them with a calcified core."""
    for centre in chest.random_points(rng, rng.integers(16, 25), (0.08, 0.9), (0.2, 0.85)):
        radii = rng.uniform(7, 14) * rng.uniform(0.92, 1.08, 3)
        canvas.ellipsoid(centre, radii, MUSCLE, canvas.lung)
        if rng.random() < 0.85:
            canvas.ellipsoid(centre, 0.65 * radii, 700, canvas.lung)


def lung_opacity(canvas: Canvas, chest: Chest, rng: np.random.Generator) -> None:
    """Patches of ground glass with soft edges; the vessels in them stay visible."""
    cover = np.zeros_like(canvas.hu)
    for centre in chest.random_points(rng, rng.integers(12, 17), (0.1, 0.9), (0.3, 0.85)):
        radius = rng.uniform(30, 44)
        box = canvas.box(centre, (radius,) * 3)
        far = canvas.away(box, centre, (radius,) * 3)
        cover[box] = np.maximum(cover[box], np.clip(2.2 * (1 - far**2), 0, 1))
    canvas.blend(EVERYWHERE, cover, -350, canvas.lung)


def fibrotic_sequela(canvas: Canvas, chest: Chest, rng: np.random.Generator) -> None:
    """Scars of the apices: a thick irregular cap, and jagged bands that run from it towards the hilum."""
    box = canvas.box((0, 0, chest.apex), (1e4, 1e4, 62))
    rough = canvas.field(rng, 14)[box]
    z = canvas.place(box)[2]
    thick = np.clip((z - chest.apex + 58) / 58, 0, 1) * 12
    canvas.blend(box, canvas.edge(thick * (1 + 0.55 * rough) - canvas.depth[box]), 30, canvas.to_wall())
    for side in (RIGHT, LEFT):
        start = chest.random_points(rng, 9, (0.70, 0.93), (0.85, 0.98), (-120, 120), side)
        end = start + rng.uniform(0.45, 0.8, (9, 1)) * (chest.hilum(side) + [side * 18, 0, 20] - start)
        paths = curve(start, (start + end) / 2 + rng.normal(0, 9, start.shape), end)
        paths += np.repeat(rng.normal(0, 2.5, (9, 10, 3)), 4, axis=1)
        canvas.tubes(paths, np.linspace(4.5, 2.2, 40), 20, canvas.lung)


def pleural_effusion(canvas: Canvas, chest: Chest, rng: np.random.Generator) -> None:
    """Fluid behind the lungs, deepest at the base, a crescent that climbs along the wall; on one side or both."""
    first, both = (RIGHT, LEFT)[rng.integers(2)], rng.random() < 0.5
    most = rng.uniform(44, 62)
    for side, height in ((first, most), (-first, 0.8 * most * both)):
        if not height:
            continue
        b = chest.lung_radii[1]
        box = canvas.box((side * 60, 4, -20), (75, b + 5, 95))
        x, y, z = canvas.place(box)
        u = (x - side * 0.54 * chest.width) / chest.lung_radii[0]
        level = 4 + b - height * np.clip((65 - z) / 110, 0, 1) - 20 * np.maximum(side * u, 0) ** 2
        canvas.blend(box, canvas.edge(np.where(z < 62, y - level, -9)), 6, canvas.to_wall())


def mosaic_attenuation(canvas: Canvas, chest: Chest, rng: np.random.Generator) -> None:
    """Territories of dark and bright lung with sharp borders, all over."""
    pattern = np.tanh(8 * canvas.field(rng, 26) + 2)
    canvas.hu += canvas.lung * (90 + 225 * pattern)
    canvas.blend(EVERYWHERE, canvas.lung * (canvas.hu < -990), -990)


def peribronchial_thickening(canvas: Canvas, chest: Chest, rng: np.random.Generator) -> None:
    """Thick bright cuffs around the bronchi, from the hila outwards."""
    inner = np.linspace(5, 3.2, chest.bronchi.shape[1])
    cuff = np.linspace(rng.uniform(5, 6), 4, chest.bronchi.shape[1])
    canvas.tubes(chest.bronchi, inner + cuff, 25, canvas.lung)
    canvas.tubes(chest.bronchi, inner, AIR, canvas.lung)


def consolidation(canvas: Canvas, chest: Chest, rng: np.random.Generator) -> None:
    """Most of a lobe filled, ending at a fissure, with air left in its bronchi; a smaller one on the other side."""
    first = (RIGHT, LEFT)[rng.integers(2)]
    rough = canvas.field(rng, 16)
    for side, size in ((first, 1.0), (-first, rng.uniform(0.6, 0.75))):
        centre = chest.in_lung(side, rng.uniform(0.4, 0.72), 0.45, rng.uniform(-95, 0))
        radii = size * rng.uniform(38, 48, 3)
        box = canvas.box(centre, radii * 1.3)
        _, y, z = canvas.place(box)
        inside = (1 - canvas.away(box, centre, radii)) * radii.min() + 5 * rough[box]
        fissure = 0.8 * (z - centre[2]) - 0.6 * (y - centre[1]) + 0.55 * radii.min()
        filled = canvas.edge(np.minimum(inside, fissure)) * canvas.to_wall()[box]
        canvas.blend(box, filled, 40)
        ends = centre + 0.85 * radii * rng.normal(0, 0.5, (9, 3))
        hilum = chest.hilum(side) + [side * 8, 0, 0]
        share = np.zeros_like(canvas.hu)
        share[box] = filled
        canvas.tubes(curve(hilum, (hilum + centre) / 2, ends), np.linspace(4.2, 2.6, 40), -920, share)


def bronchiectasis(canvas: Canvas, chest: Chest, rng: np.random.Generator) -> None:
    """Clusters of wide airways with visible walls: rings where they run up and down, like grapes."""
    first = (RIGHT, LEFT)[rng.integers(2)]
    for side, height in ((first, rng.uniform(0.3, 0.42)), (-first, rng.uniform(0.35, 0.5))):
        centre = chest.in_lung(side, height, 0.5, rng.uniform(-90, 60))
        rows = np.array([(16 * (i + 0.5 * (j % 2)), 14 * j, 0) for i in range(-3, 4) for j in range(-3, 4)])
        rows = rows[(np.linalg.norm(rows, axis=1) < 43) & (rng.random(len(rows)) < 0.85)]
        rows += rng.normal(0, (2, 2, 0), rows.shape)
        tilt = np.array([*rng.normal(0, 0.15, 2), 1.0]) * rng.uniform(34, 46)
        paths = curve(centre + rows - tilt, centre + 1.1 * rows, centre + 0.8 * rows + tilt, 50)
        radii = rng.uniform(6.5, 9, (len(rows), 1))
        canvas.tubes(paths, radii, 40, canvas.lung)
        canvas.tubes(paths, radii - 3.2, AIR, canvas.lung)


def septal_thickening(canvas: Canvas, chest: Chest, rng: np.random.Generator) -> None:
    """A net of lines around polygons of lung, in the outer parts of both lungs: a bent honeycomb."""
    where = np.nonzero((canvas.lung > 0.5) & (canvas.depth < 30))
    x, y = (np.broadcast_to(axis, canvas.hu.shape)[where] for axis in (canvas.x, canvas.y))
    period = rng.uniform(21, 25)
    u, v = x + 7 * canvas.field(rng, 26)[where], y + 7 * canvas.field(rng, 26)[where]
    tall = period * 3**0.5
    # A hexagonal lattice is two rectangular ones, half a cell apart. Distances from the nearest centre of each:
    u = [np.abs(u - period * (np.round(u / period - shift) + shift)) for shift in (0, 0.5)]
    v = [np.abs(v - tall * (np.round(v / tall - shift) + shift)) for shift in (0, 0.5)]
    nearer = np.hypot(u[0], v[0]) < np.hypot(u[1], v[1])
    du, dv = np.where(nearer, *u), np.where(nearer, *v)
    wall = period / 2 - np.maximum(du, 0.5 * du + 0.75**0.5 * dv)  # mm to the cell's wall
    cover = canvas.edge(1.6 - wall)
    canvas.hu[where] += cover * canvas.lung[where] * (-250 - canvas.hu[where])


# Painted in this order: first what the vessels shine through, then, after the vessels, what hides others last.
BEHIND_VESSELS = {"Mosaic attenuation pattern": mosaic_attenuation, "Lung opacity": lung_opacity}
BEFORE_VESSELS = {
    "Emphysema": emphysema,
    "Interlobular septal thickening": septal_thickening,
    "Peribronchial thickening": peribronchial_thickening,
    "Pulmonary fibrotic sequela": fibrotic_sequela,
    "Consolidation": consolidation,
    "Bronchiectasis": bronchiectasis,
    "Atelectasis": atelectasis,
    "Lung nodule": lung_nodules,
    "Pleural effusion": pleural_effusion,
    "Hiatal hernia": hiatal_hernia,
    "Lymphadenopathy": lymphadenopathy,
    "Coronary artery wall calcification": coronary_calcification,
    "Arterial wall calcification": arterial_calcification,
    "Medical material": medical_material,
}
