"""The store: several names for one image, and nothing removed that somebody needs."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from dataclasses import replace

import pytest

from api.errors import FailedPreconditionError, InvalidArgumentError, NotFoundError
from imageservice.manifest import Descriptor, ImageConfig
from imageservice.objects import Garbage, Image, Layer
from imageservice.pinning import Pins, is_patterns
from imageservice.store import ImageStore


def digest(text: str) -> str:
    return f"sha256:{text:0<64}"


BASE, TOP, OTHER = digest("1"), digest("2"), digest("3")
REPOSITORY = "docker.io/library/a"


@pytest.fixture
def database() -> Iterator[sqlite3.Connection]:
    connection = sqlite3.connect(":memory:", isolation_level="IMMEDIATE")
    yield connection
    connection.close()


@pytest.fixture
def store(database: sqlite3.Connection) -> ImageStore:
    return ImageStore(database)


def add_image(store: ImageStore, text: str, diff_ids: tuple[str, ...], *names: str) -> Image:
    """Add an image with its layers, each from a blob of the same digest as its diff."""
    config = ImageConfig({"rootfs": {"diff_ids": list(diff_ids)}}, diff_ids)
    parent = ""
    for number, chain_id in enumerate(config.chain_ids):
        if not store.has_layer(chain_id):
            blob = Descriptor("layer", diff_ids[number], 10)
            free = max(store.layer_numbers(), default=0) + 1
            store.commit_layer(Layer(chain_id, parent, diff_ids[number], free, 100, 3), blob)
        parent = chain_id
    image_id = digest(text)
    blobs = [Descriptor("config", image_id, 5), *(Descriptor("layer", d, 10) for d in diff_ids)]
    targets = dict.fromkeys(names, image_id)
    return store.commit_image(image_id, config, 25, blobs, targets)


def test_the_digest_that_a_status_shows_is_of_the_repository_that_was_asked_for(
    store: ImageStore,
) -> None:
    image = add_image(store, "a", (BASE,))
    assert store.repo_digest(image.id, f"{REPOSITORY}:1") == image.id
    others = [f"{name}@{digest('f')}" for name in ("other.example/a", REPOSITORY, "z.example/a")]
    add_image(store, "a", (BASE,), f"{REPOSITORY}:1", *others)
    assert store.repo_digest(image.id, f"{REPOSITORY}:1") == f"{REPOSITORY}@{digest('f')}"
    assert store.repo_digest(image.id, image.id) in others
    assert store.repo_digest(digest("gone"), f"{REPOSITORY}:1") == digest("gone")


def test_an_image_has_all_its_names(store: ImageStore, database: sqlite3.Connection) -> None:
    add_image(store, "a", (BASE,), f"{REPOSITORY}:latest", f"{REPOSITORY}@{digest('f')}")
    add_image(store, "a", (BASE,), f"{REPOSITORY}:1")
    for opened in (store, ImageStore(database)):
        (image,) = opened.images()
        assert image.repo_tags == (f"{REPOSITORY}:1", f"{REPOSITORY}:latest")
        assert image.repo_digests == (f"{REPOSITORY}@{digest('f')}",)
        assert image.layers == (BASE,)
        assert image.size == 25


def test_a_name_moves_to_the_image_pulled_last(store: ImageStore) -> None:
    old = add_image(store, "a", (BASE,), f"{REPOSITORY}:latest", f"{REPOSITORY}@{digest('f')}")
    new = add_image(store, "b", (BASE, TOP), f"{REPOSITORY}:latest")
    assert store.resolve("a:latest") == new
    left = store.resolve(old.id)
    assert (left.repo_tags, left.repo_digests) == ((), old.repo_digests)


@pytest.mark.parametrize(
    "text",
    ["a", "a:latest", "docker.io/library/a:latest", digest("abc"), "sha256:abc", "abc"]
    + [digest("abc").removeprefix("sha256:"), f"a@{digest('f')}"],
)
def test_an_image_is_found_by_any_of_its_names(store: ImageStore, text: str) -> None:
    image = add_image(store, "abc", (BASE,), f"{REPOSITORY}:latest", f"{REPOSITORY}@{digest('f')}")
    assert store.resolve(text) == image


@pytest.mark.parametrize("text", ["b", digest("d"), "abd", "a:other", f"a@{digest('e')}"])
def test_what_is_not_there_is_not_found(store: ImageStore, text: str) -> None:
    add_image(store, "abc", (BASE,), f"{REPOSITORY}:latest")
    with pytest.raises(NotFoundError):
        store.resolve(text)


def test_a_name_goes_before_the_beginning_of_an_id(store: ImageStore) -> None:
    add_image(store, "abc", (BASE,))
    named = add_image(store, "b", (BASE,), "docker.io/library/abc:latest")
    assert store.resolve("abc") == named


def test_an_ambiguous_beginning_is_refused(store: ImageStore) -> None:
    add_image(store, "abc", (BASE,))
    add_image(store, "abd", (BASE,))
    with pytest.raises(FailedPreconditionError, match="2 image ids"):
        store.resolve("ab")


def test_what_can_be_no_name_is_an_invalid_argument(store: ImageStore) -> None:
    with pytest.raises(InvalidArgumentError):
        store.resolve("No Name")


def test_the_last_image_takes_everything_with_it(
    store: ImageStore, database: sqlite3.Connection
) -> None:
    image = add_image(store, "a", (BASE, TOP), f"{REPOSITORY}:latest")
    garbage = store.remove_image(image)
    assert sorted(garbage.layers) == [1, 2]
    assert sorted(garbage.blobs) == sorted([image.id, BASE, TOP])
    assert store.images() == []
    for table in ("images", "image_names", "image_blobs", "layers", "blobs", "snapshots"):
        assert database.execute(f"SELECT count(*) FROM {table}").fetchone() == (0,)


def test_what_images_share_stays_for_the_other(store: ImageStore) -> None:
    one = add_image(store, "a", (BASE, TOP))
    two = add_image(store, "b", (BASE, OTHER))
    garbage = store.remove_image(one)
    assert garbage.layers == (2,)
    assert sorted(garbage.blobs) == sorted((one.id, TOP))
    assert store.images() == [two]
    assert store.layer(two.layers[0]) is not None
    assert store.layer(two.layers[1]) is not None
    assert set(store.known_blobs()) == {two.id, BASE, OTHER}


def test_a_base_image_stays_below_an_image_built_on_it(store: ImageStore) -> None:
    base = add_image(store, "a", (BASE,))
    built = add_image(store, "b", (BASE, TOP))
    assert store.remove_image(base).layers == ()
    assert sorted(store.remove_image(built).layers) == [1, 2]


def test_a_containers_layers_stay_until_it_is_removed(store: ImageStore) -> None:
    image = add_image(store, "a", (BASE, TOP))
    store.add_snapshot("c1", image)
    store.add_snapshot("c2", image)
    assert store.remove_image(image).layers == ()
    assert store.remove_snapshot("c1") == Garbage()
    assert sorted(store.remove_snapshot("c2").layers) == [1, 2]
    assert store.remove_snapshot("c2") == Garbage()


def test_what_a_pull_holds_stays(store: ImageStore) -> None:
    image = add_image(store, "a", (BASE, TOP))
    with store.pin([BASE, *image.layers]), store.pin([BASE]):
        garbage = store.remove_image(image)
        assert garbage.layers == ()
        assert BASE not in garbage.blobs
    assert sorted(store.collect([image.chain_id], [BASE]).layers) == [1, 2]


def test_orphans_are_collected_by_age(store: ImageStore) -> None:
    kept = add_image(store, "a", (BASE,))
    store.commit_layer(Layer(OTHER, "", OTHER, 9, 1, 1), Descriptor("layer", OTHER, 10))
    assert store.collect_orphans(3600) == Garbage()
    assert store.collect_orphans(0) == Garbage((9,), (OTHER,))
    assert store.collect_orphans(0) == Garbage()
    assert store.resolve(kept.id) == kept


def test_usage_counts_layers_and_blobs(store: ImageStore) -> None:
    assert store.usage() == (0, 0)
    add_image(store, "a", (BASE, TOP))
    assert store.usage() == (2 * 100 + 5 + 2 * 10, 2 * 3 + 3)


def test_an_image_without_layers_is_an_image(store: ImageStore) -> None:
    image = add_image(store, "a", ())
    assert image.chain_id == ""
    store.add_snapshot("c", image)
    assert store.remove_image(image) == Garbage((), (image.id,))
    assert store.remove_snapshot("c") == Garbage()


def test_a_failed_commit_leaves_nothing(store: ImageStore, database: sqlite3.Connection) -> None:
    database.execute(
        "CREATE TRIGGER no BEFORE INSERT ON image_names BEGIN SELECT RAISE(ABORT, 'disk'); END"
    )
    with pytest.raises(sqlite3.Error):
        add_image(store, "a", (), f"{REPOSITORY}:latest")
    assert store.images() == []
    assert database.execute("SELECT count(*) FROM images").fetchone() == (0,)
    with pytest.raises(NotFoundError):
        store.resolve("a")


def test_pinned_images_are_told_by_their_names(database: sqlite3.Connection) -> None:
    patterns = ("busybox", "registry.test/pause*", "*infra*", "not a name at all")
    store = ImageStore(database, Pins(patterns))
    names = {
        "a": ("docker.io/library/busybox:latest", True),
        "b": ("docker.io/library/busybox:2", False),
        "c": ("registry.test/pause:3.10", True),
        "d": ("registry.test/team/infra/x:1", True),
        "e": ("other.test/pause:1", False),
    }
    for text, (name, pinned) in names.items():
        image = add_image(store, text, (), name)
        assert store.resolve(name).pinned is pinned, name
        again = ImageStore(database, Pins(patterns)).get(image.id)
        assert again is not None and again.pinned is pinned
    image = store.resolve("docker.io/library/busybox:latest")
    store.add_names(store.resolve("other.test/pause:1").id, {image.repo_tags[0]: image.id})
    assert not store.resolve(image.id).pinned  # its name is another's now


@pytest.mark.parametrize("pattern", ["", "*", "**", "a*b", "*a", "a**", "a\nb"])
def test_what_is_no_pattern_is_refused(pattern: str) -> None:
    assert not is_patterns([pattern])
    assert is_patterns(["a", "a*", "*a*"])


def test_a_damaged_layer_is_missing_until_it_is_made_again(store: ImageStore) -> None:
    image = add_image(store, "a", (BASE, TOP), "a.test/a:1")
    top = image.layers[-1]
    layer = store.layer(top)
    assert layer is not None
    store.add_snapshot("c1", image)
    store.health.mark(top, "because")
    assert not store.has_layer(top)
    assert not store.health.is_whole(image.layers)
    store.commit_layer(replace(layer, number=77))
    assert store.has_layer(top)
    assert store.layer_numbers() >= {77, layer.number}
    assert store.collect_orphans(0).layers == ()  # the container may have the old one mounted
    assert store.remove_snapshot("c1").layers == (layer.number,)
    assert set(store.remove_image(image).layers) == {1, 77}


def test_a_view_holds_its_layers(store: ImageStore) -> None:
    image = add_image(store, "a", (BASE,), "a.test/a:1")
    store.add_view("mount:/x", image)
    assert store.users_of(image.id) == ["mount:/x"]
    assert store.remove_image(image).layers == ()
    assert store.remove_views("mount:/x").layers == (1,)


def test_a_question_about_500_images_is_cheap(database: sqlite3.Connection) -> None:
    """The kubelet asks every 10 s: no step of it looks at each layer in Python."""
    store = ImageStore(database)
    for number in range(500):
        add_image(store, str(number), (f"sha256:{number:064x}",))
    statements: list[str] = []
    database.set_trace_callback(statements.append)
    assert store.usage()[1] >= 500
    database.set_trace_callback(None)
    assert len(statements) == 2
