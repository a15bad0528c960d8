"""Scenes said in German, French, Spanish and Italian, and a small language model that tells these from English.

The sentences are plain on purpose: colours and places are attached so that nothing has to agree with them. The
model knows these sentences only; `lid.176` is the one for real captions.
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from curate.demo import scenes


@dataclass(frozen=True)
class Language:
    """The words of scenes in one language."""

    numbers: tuple[str, str, str, str]
    """Two to five."""
    shapes: dict[str, tuple[str, str]]
    """One with its article, and the plural."""
    colours: dict[str, str]
    coloured: str
    """How a thing and its colour stand together."""
    sizes: dict[str, str]
    ground: tuple[str, ...]
    places: dict[str, str]
    openings: tuple[str, ...]
    conjunction: str


_OPPOSITE = {"left": "right", "right": "left", "above": "below", "below": "above"}


def _shapes(words: str) -> dict[str, tuple[str, str]]:
    pairs = [pair.strip().split("/") for pair in words.split(",")]
    return {shape: (one, many) for shape, (one, many) in zip(scenes.SHAPES, pairs, strict=True)}


def _colours(words: str) -> dict[str, str]:
    return dict(zip(scenes.COLOURS, words.split(), strict=True))


def _places(words: str) -> dict[str, str]:
    names = ("left", "right", "above", "below", "top left", "top right", "bottom left", "bottom right")
    return dict(zip(names, (word.strip() for word in words.split(",")), strict=True))


LANGUAGES: dict[str, Language] = {
    "de": Language(
        ("zwei", "drei", "vier", "fünf"),
        _shapes(
            "ein Kreis/Kreise, ein Quadrat/Quadrate, ein Dreieck/Dreiecke, ein Stern/Sterne, ein Kreuz/Kreuze, "
            "ein Ring/Ringe, ein Herz/Herzen, eine Raute/Rauten"
        ),
        _colours("Rot Grün Blau Gelb Orange Lila Rosa Braun Schwarz Weiß Grau Türkis"),
        "{thing} in {colour}",
        {"small": "in kleiner Größe", "large": "in großer Größe"},
        ("vor einem Hintergrund in {colour}", "auf einer Fläche in {colour}", "vor einer Wand in {colour}"),
        _places("links, rechts, oben, unten, oben links, oben rechts, unten links, unten rechts"),
        ("", "ein Foto zeigt ", "hier sieht man ", "das Bild zeigt "),
        "und",
    ),
    "fr": Language(
        ("deux", "trois", "quatre", "cinq"),
        _shapes(
            "un cercle/cercles, un carré/carrés, un triangle/triangles, une étoile/étoiles, une croix/croix, "
            "un anneau/anneaux, un cœur/cœurs, un losange/losanges"
        ),
        _colours("rouge verte bleue jaune orange violette rose brune noire blanche grise turquoise"),
        "{thing} de couleur {colour}",
        {"small": "de petite taille", "large": "de grande taille"},
        ("sur un fond de couleur {colour}", "devant un mur de couleur {colour}"),
        _places(
            "à gauche, à droite, en haut, en bas, "
            "en haut à gauche, en haut à droite, en bas à gauche, en bas à droite"
        ),
        ("", "une photo de ", "on voit ici ", "une image avec "),
        "et",
    ),
    "es": Language(
        ("dos", "tres", "cuatro", "cinco"),
        _shapes(
            "un círculo/círculos, un cuadrado/cuadrados, un triángulo/triángulos, una estrella/estrellas, "
            "una cruz/cruces, un anillo/anillos, un corazón/corazones, un rombo/rombos"
        ),
        _colours("rojo verde azul amarillo naranja morado rosa marrón negro blanco gris turquesa"),
        "{thing} de color {colour}",
        {"small": "de tamaño pequeño", "large": "de tamaño grande"},
        ("sobre un fondo de color {colour}", "delante de una pared de color {colour}"),
        _places(
            "a la izquierda, a la derecha, arriba, abajo, "
            "arriba a la izquierda, arriba a la derecha, abajo a la izquierda, abajo a la derecha"
        ),
        ("", "una foto de ", "aquí vemos ", "una imagen con "),
        "y",
    ),
    "it": Language(
        ("due", "tre", "quattro", "cinque"),
        _shapes(
            "un cerchio/cerchi, un quadrato/quadrati, un triangolo/triangoli, una stella/stelle, una croce/croci, "
            "un anello/anelli, un cuore/cuori, un rombo/rombi"
        ),
        _colours("rosso verde blu giallo arancione viola rosa marrone nero bianco grigio turchese"),
        "{thing} di colore {colour}",
        {"small": "di piccole dimensioni", "large": "di grandi dimensioni"},
        ("su uno sfondo di colore {colour}", "davanti a una parete di colore {colour}"),
        _places(
            "a sinistra, a destra, in alto, in basso, "
            "in alto a sinistra, in alto a destra, in basso a sinistra, in basso a destra"
        ),
        ("", "una foto di ", "qui vediamo ", "un'immagine con "),
        "e",
    ),
}


def said_in(language: str, scene: scenes.Scene, seed: int) -> str:
    """A caption of the scene in `de`, `fr`, `es` or `it`."""
    words = LANGUAGES[language]
    rng = random.Random(seed)
    things = []
    for group in scene.groups:
        one, many = words.shapes[group.shape]
        noun = one if group.count == 1 else f"{words.numbers[group.count - 2]} {many}"
        thing = words.coloured.format(thing=noun, colour=words.colours[group.colour])
        if group.size and rng.random() < 0.6:
            thing += " " + words.sizes[group.size]
        things.append(thing)
    if len(things) == 2:
        if rng.random() < 0.75:
            things[0] += " " + words.places[scene.place]
            things[1] += " " + words.places[_OPPOSITE[scene.place]]
        text = f"{things[0]} {words.conjunction} {things[1]}"
    else:
        text = f"{things[0]} {words.places[scene.place]}" if scene.place else things[0]
    if rng.random() < 0.75:
        text += " " + rng.choice(words.ground).format(colour=words.colours[scene.background])
    text = rng.choice(words.openings) + text
    return text[0].upper() + text[1:] + "." if rng.random() < 0.5 else text


def train_language_model(path: Path) -> None:
    """Writes a fastText model whose labels are `__label__en` and the four others, in a second and some 340 kB.

    The same versions give the same bytes. Raises RuntimeError with fastText's words where it fails.
    """
    # fastText 0.9.3 fills only the first part of its input matrix and relies on the rest being zero: true of
    # memory fresh from the system, hence a process of its own in which every large block is fresh
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}
    command = [sys.executable, "-m", "curate.demo.languages", str(path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"the demo's language model was not trained: {done.stderr.strip()}")


def main(path: Path, count: int = 1500) -> None:
    """Trains in this process, on scenes of the first `count` seeds."""
    import fasttext

    lines = []
    for seed in range(count):
        scene = scenes.compose(seed)
        said = {"en": scene.caption, **{code: said_in(code, scene, seed) for code in LANGUAGES}}
        lines += [f"__label__{code} {text}" for code, text in said.items()]
    with tempfile.TemporaryDirectory(prefix="curate-lid-") as folder:
        text = Path(folder) / "sentences.txt"
        text.write_text("\n".join(lines) + "\n", encoding="utf-8")
        # one thread, since with more the outcome varies from run to run
        model = fasttext.train_supervised(
            str(text), dim=8, epoch=8, lr=0.3, minn=2, maxn=4, bucket=10_000, thread=1, verbose=0
        )
        temporary = path.with_name(path.name + ".tmp")
        model.save_model(str(temporary))
        temporary.replace(path)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
