"""The encoder of a run on any number of grids: what the file says is what the model says, and how mistakes are told."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage

import jepa
from jepa import encode, encoded_files, main, train
from jepa.data import _grid_files, _objects
from jepa.encode import Grid
from jepa.quantizers import fsq

pytestmark = pytest.mark.slow  # they share runs that have to be trained

ROOT = Path(__file__).parent.parent
EIGHT = np.ones((3, 3), bool)
PER_OBJECT = ("kind", "code", "symbols", "box", "colour", "histogram", "area")


def trained(spec, workdir):
    train.run(main.load_config(spec), workdir)  # as it is in its file: other tests have compiled the same programs
    return workdir


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    return trained("configs/lejepa_codes.py:tiny", tmp_path_factory.mktemp("runs") / "codes")


@pytest.fixture(scope="module")
def model(workdir):
    return jepa.load(workdir)


@pytest.fixture
def command(workdir, monkeypatch, capsys):
    """Runs the command in this process: (exit code, stdout, stderr). {run} stands for the run folder."""

    def run(*arguments):
        given = [argument.format(run=workdir) for argument in arguments]
        monkeypatch.setattr(sys, "argv", ["jepa.encode", *given])
        code = 0
        try:
            encode.run()
        except SystemExit as stop:
            code = stop.code
        return code, *capsys.readouterr()

    return run


def random_grid(rng, colours=4, largest=9):
    """Mostly background, as grids are."""
    shape = rng.integers(1, largest + 1, size=2)
    return rng.integers(1, colours, shape) * (rng.random(shape) < 0.4)


def pair(rng, answered=True):
    sides = ("input", "output") if answered else ("input",)
    return {side: random_grid(rng).tolist() for side in sides}


def write_tasks(folder, num=3, answered=True):
    """Tasks of two demonstrations and a test, and the grids in the order in which the command reads them."""
    folder.mkdir(parents=True)
    grids = []
    for number in range(num):
        rng = np.random.default_rng(number)
        task = {"train": [pair(rng), pair(rng)], "test": [pair(rng)]}
        if not answered:
            task["test"][0]["output"] = None
        (folder / f"task{number}.json").write_text(json.dumps(task))
        grids += [
            (f"task{number}.json", role, index, side, np.array(grid))
            for role in ("train", "test")
            for index, sides in enumerate(task[role])
            for side, grid in sides.items()
            if grid is not None
        ]
    return grids


def read(file):
    with np.load(file) as arrays:
        return dict(arrays)


def objects_of(arrays, grid):
    rows = slice(*arrays["object_start"][grid : grid + 2])
    return {name: arrays[name][rows] for name in PER_OBJECT if name in arrays}


def test_the_file_holds_what_the_model_says_of_each_grid(command, model, tmp_path):
    grids = write_tasks(tmp_path / "in")
    code, out, err = command("{run}", f"--input={tmp_path}/in", f"--output={tmp_path}/codes.npz")
    assert code == 0 and err == "" and "18 grids" in out
    arrays = read(tmp_path / "codes.npz")
    for column, name in enumerate(("file", "role", "pair", "side")):
        assert arrays[name].tolist() == [row[column] for row in grids]
    cells = [row[-1] for row in grids]
    background = []
    for name, *_ in grids:
        task = [row for row in grids if row[0] == name]
        background.append(_objects.background([row[-1] for row in task if row[1::2] != ("test", "output")]))
    described = model.describe(cells, background)
    np.testing.assert_array_equal(arrays["embedding"], described.embeddings)
    np.testing.assert_array_equal(arrays["background"], background)
    np.testing.assert_array_equal(arrays["size"], [grid.shape for grid in cells])
    assert arrays["object_start"][-1] == described.table["mask"].sum() == len(arrays["code"])
    for number, mask in enumerate(described.table["mask"]):
        found = objects_of(arrays, number)
        np.testing.assert_array_equal(found["code"], described.codes[number][mask])
        for name in ("box", "histogram"):
            np.testing.assert_array_equal(found[name], described.table[name][number][mask])
    meta = json.loads(str(arrays["meta"]))
    assert meta == {"format": 1, "run": "codes", "step": 20, "levels": [4, 3, 3], "background": "task"}


def test_two_runs_give_the_same_bytes(command, workdir, tmp_path):
    write_tasks(tmp_path / "in")
    assert command("{run}", f"--input={tmp_path}/in", f"--output={tmp_path}/one.npz")[0] == 0
    options = [f"--input={tmp_path}/in", f"--output={tmp_path}/two.npz"]
    done = subprocess.run(
        [sys.executable, "-m", "jepa.encode", workdir, *options], cwd=ROOT, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0 and done.stderr == "" and "two.npz: 18 grids" in done.stdout, done.stderr
    assert (tmp_path / "one.npz").read_bytes() == (tmp_path / "two.npz").read_bytes()


def test_no_number_depends_on_the_chunk(model):
    rng = np.random.default_rng(0)
    grids = [Grid(random_grid(rng, largest=30)) for _ in range(270)]
    (whole,) = encode.stream(model, grids, chunk=1000)
    for chunk in (7, 256):
        parts = list(encoded_files._numbered_on(encode.stream(model, grids, chunk=chunk)))
        assert len(parts) == -(-270 // chunk)
        for name, array in whole.items():
            np.testing.assert_array_equal(np.concatenate([part[name] for part in parts]), array, err_msg=name)


def test_symbols_pack_back_to_the_code(model):
    rng = np.random.default_rng(1)
    (block,) = encode.stream(model, [Grid(random_grid(rng)) for _ in range(40)])
    symbols = block["symbols"]
    assert symbols.shape == (len(block["code"]), 3) and (symbols >= 0).all() and (symbols < model.levels).all()
    np.testing.assert_array_equal(symbols @ [1, 4, 12], block["code"])
    np.testing.assert_array_equal(fsq.pack(symbols, model.levels), block["code"])
    assert len(np.unique(block["code"])) > 1


def test_objects_of_a_grid_drawn_by_hand(model):
    cells = np.array(
        [
            [0, 0, 0, 0, 0, 0],
            [0, 3, 3, 0, 0, 7],
            [0, 3, 0, 0, 0, 7],
            [0, 0, 5, 0, 0, 0],
            [0, 0, 5, 5, 0, 0],
        ]
    )
    (block,) = encode.stream(model, [Grid(np.zeros((2, 2), int)), Grid(cells)])
    assert block["object_start"].tolist() == [0, 1, 5] and block["background"].tolist() == [0, 0]
    assert block["kind"].tolist() == [0, 0, 1, 1, 1] and block["area"].tolist()[:2] == [4, 30]
    found = {int(block["colour"][row]): row for row in range(2, 5)}
    assert block["box"][1].tolist() == [0, 0, 5, 6] and block["colour"][1] == 0
    assert {colour: block["box"][row].tolist() for colour, row in found.items()} == {
        3: [1, 1, 2, 2],
        5: [3, 2, 2, 2],
        7: [1, 5, 2, 1],
    }
    assert {colour: int(block["area"][row]) for colour, row in found.items()} == {3: 3, 5: 3, 7: 2}
    assert block["histogram"][found[5]].tolist() == [0, 0, 0, 0, 0, 3, 0, 0, 0, 0]
    assert block["edges"].tolist() == [sorted((found[3], found[5]))]  # a corner is enough; 7 touches nothing
    assert block["edge_start"].tolist() == [0, 0, 1]


def test_the_colour_of_an_object_of_several_is_the_smallest_of_the_commonest(model):
    cells = np.zeros((30, 30), int)
    cells[:8, :8] = np.tile([[9, 4], [7, 2]], (4, 4))  # 64 objects of one colour, too many: one of four colours
    more = cells.copy()
    more[0, 0] = 4
    (block,) = encode.stream(model, [Grid(cells), Grid(more)])
    assert block["kind"].tolist() == [0, 1, 0, 1] and block["area"].tolist() == [900, 64, 900, 64]
    assert block["histogram"][1].tolist() == [0, 0, 16, 0, 16, 0, 0, 16, 0, 16]
    assert block["colour"].tolist() == [0, 2, 0, 4]


def test_what_did_not_fit_is_one_row(model):
    cells = np.zeros((30, 30), int)
    cells[::2, ::2] = 1  # 225 objects
    (block,) = encode.stream(model, [Grid(cells)])
    kept = len(block["kind"]) - 2
    assert 1 <= kept <= 32 and block["kind"].tolist() == [0] + kept * [1] + [2]
    assert block["area"].tolist() == [900] + kept * [1] + [225 - kept]
    assert block["box"][-1].tolist() == [0, 0, 0, 0] and block["code"][-1] >= 0


def reference_contacts(cells):
    """Pairs of objects, each as (colour, top, left, height, width, area), that touch by a side or a corner."""
    found = []
    for colour in np.setdiff1d(cells, [0]):
        labels, count = ndimage.label(cells == colour, EIGHT)
        for number, (rows, columns) in enumerate(ndimage.find_objects(labels), 1):
            place = (rows.start, columns.start, rows.stop - rows.start, columns.stop - columns.start)
            found.append(((int(colour), *place, int((labels == number).sum())), labels == number))
        assert count < 30
    return sorted(
        sorted((first, second))
        for i, (first, cells_of) in enumerate(found)
        for second, others in found[:i]
        if (ndimage.binary_dilation(cells_of, EIGHT) & others).any()
    )


def test_edges_are_the_pairs_that_touch(model):
    rng = np.random.default_rng(3)
    grids = [random_grid(rng) for _ in range(60)]
    (block,) = encode.stream(model, [Grid(cells, background=0) for cells in grids])
    assert (block["edges"][:, 0] < block["edges"][:, 1]).all()
    assert len(block["edges"]) == block["edge_start"][-1] > 60
    names = [
        (int(colour), *map(int, box), int(area))
        for colour, box, area in zip(block["colour"], block["box"], block["area"], strict=True)
    ]
    for number, cells in enumerate(grids):
        edges = block["edges"][slice(*block["edge_start"][number : number + 2])]
        assert sorted(sorted((names[i], names[j])) for i, j in edges) == reference_contacts(cells)


def test_a_stream_reads_no_more_than_a_chunk_ahead(model):
    read = []

    def grids():
        for number in range(1000):
            read.append(number)
            yield Grid(np.full((2, 3), number % 10))

    blocks = encode.stream(model, grids(), chunk=10)
    assert not read
    for number in range(1, 4):
        assert len(next(blocks)["pair"]) == 10 and len(read) == 10 * number


def test_files_are_read_one_at_a_time(tmp_path, monkeypatch):
    write_tasks(tmp_path / "in")
    loaded, load = [], _grid_files._load_file
    monkeypatch.setattr(_grid_files, "_load_file", lambda file: loaded.append(file.name) or load(file))
    grids = encode.open_input(tmp_path / "in").grids()
    assert not loaded
    next(grids)
    assert loaded == ["task0.json"]
    assert len(list(grids)) == 17 and loaded == ["task0.json", "task1.json", "task2.json"]


def test_a_task_reads_alike_with_and_without_its_answers(tmp_path):
    write_tasks(tmp_path / "with", num=8)
    write_tasks(tmp_path / "without", num=8, answered=False)
    with_answers, without = (list(encode.open_input(tmp_path / name).grids()) for name in ("with", "without"))
    asked = [grid for grid in with_answers if (grid.role, grid.side) != ("test", "output")]
    assert len(asked) == len(without) == 40
    for one, other in zip(asked, without, strict=True):
        assert one[1:] == other[1:] and np.array_equal(one.cells, other.cells)
    assert len({grid.background for grid in with_answers if grid.file == "task0.json"}) == 1


@pytest.mark.parametrize(("choice", "expected"), [("task", [0, 0]), ("own", [5, 0]), ("3", [3, 3]), ("-1", [-1, -1])])
def test_the_background_can_be_chosen(choice, expected, command, tmp_path):
    task = {"train": [{"input": [[5, 5, 0]], "output": [[0, 0, 0]]}]}
    (tmp_path / "task.json").write_text(json.dumps(task))
    options = (f"--input={tmp_path}/task.json", f"--output={tmp_path}/codes.npz", f"--background={choice}")
    assert command("{run}", *options)[0] == 0
    assert read(tmp_path / "codes.npz")["background"].tolist() == expected


def test_grids_lists_of_grids_arrays_and_collections_are_read(tmp_path):
    first, second = np.array([[1, 2, 3]]), np.array([[4], [5]])
    (tmp_path / "b.json").write_text(json.dumps(first.tolist()))
    (tmp_path / "a.json").write_text(json.dumps([first.tolist(), second.tolist()]))
    np.save(tmp_path / "c.npy", np.asfortranarray([[6, 7], [8, 9], [0, 1]]))
    (tmp_path / "notes.txt").write_text("not a grid")
    grids = list(encode.open_input(tmp_path).grids())
    assert [(grid.file, grid.role, grid.pair, grid.side) for grid in grids] == [
        ("a.json", "", 0, ""),
        ("a.json", "", 1, ""),
        ("b.json", "", 0, ""),
        ("c.npy", "", 0, ""),
    ]
    cells = [grid.cells.tolist() for grid in grids]
    assert cells == [first.tolist(), second.tolist(), first.tolist(), [[6, 7], [8, 9], [0, 1]]]
    assert all(grid.background is None for grid in grids)
    (alone,) = encode.open_input(tmp_path / "c.npy").grids()
    assert alone.file == "c.npy"
    collection = encode.open_input("arc1-eval")
    assert len(collection.names) == 400
    assert [grid.side for grid in collection.load(collection.names[0])][:2] == ["input", "output"]


def test_a_grid_stored_by_columns_is_the_same_grid(model, tmp_path):
    cells = random_grid(np.random.default_rng(4), largest=9)
    np.save(tmp_path / "columns.npy", np.asfortranarray(cells))
    np.save(tmp_path / "rows.npy", np.ascontiguousarray(cells))
    (block,) = encode.stream(model, encode.open_input(tmp_path).grids())
    one, other = objects_of(block, 0), objects_of(block, 1)
    assert all(np.array_equal(one[name], other[name]) for name in PER_OBJECT)


def test_a_checkpoint_can_be_chosen(command, tmp_path):
    write_tasks(tmp_path / "in", num=1)
    files = {}
    for choice in ("latest", "best", "20", "10"):
        files[choice] = tmp_path / f"{choice}.npz"
        options = (f"--input={tmp_path}/in", f"--output={files[choice]}", f"--checkpoint={choice}")
        assert command("{run}", *options)[0] == 0
    assert files["latest"].read_bytes() == files["20"].read_bytes() != files["10"].read_bytes()
    assert json.loads(str(read(files["10"])["meta"]))["step"] == 10
    assert files["best"].read_bytes() in (files["20"].read_bytes(), files["10"].read_bytes())


def test_a_run_without_codes_gives_embeddings_and_objects(command, tmp_path):
    plain = trained("configs/lejepa.py:tiny", tmp_path / "plain")
    write_tasks(tmp_path / "in", num=1)
    code, out, _ = command(str(plain), f"--input={tmp_path}/in", f"--output={tmp_path}/codes.npz")
    assert code == 0 and f"{plain} has no quantizer: there will be embeddings and objects, but no codes" in out
    arrays = read(tmp_path / "codes.npz")
    assert not {"code", "symbols"} & arrays.keys() and arrays["embedding"].shape == (6, 16)
    assert arrays["object_start"][-1] == len(arrays["box"]) and json.loads(str(arrays["meta"]))["levels"] == []


def test_parquet_has_a_row_for_each_grid_with_the_same_numbers(model, tmp_path, monkeypatch):
    parquet = pytest.importorskip("pyarrow.parquet")
    monkeypatch.setattr(encoded_files, "GROUP", 2)
    write_tasks(tmp_path / "in")
    blocks = list(encode.stream(model, encode.open_input(tmp_path / "in").grids(), chunk=4))
    for name in ("codes.npz", "codes.parquet", "again.parquet"):
        encode.write(tmp_path / name, blocks, '{"run": "x"}')
    assert (tmp_path / "codes.parquet").read_bytes() == (tmp_path / "again.parquet").read_bytes()
    assert parquet.ParquetFile(tmp_path / "codes.parquet").num_row_groups == 3
    arrays, table = read(tmp_path / "codes.npz"), parquet.read_table(tmp_path / "codes.parquet")
    assert table.schema.metadata[b"jepa"].decode() == str(arrays["meta"]) and table.num_rows == 18
    assert set(table.column_names) == arrays.keys() - {"meta", "object_start", "edge_start"}
    for number, row in enumerate(table.to_pylist()):
        for name in ("file", "role", "pair", "side", "background"):
            assert row[name] == arrays[name][number]
        for name in ("size", "embedding"):
            np.testing.assert_array_equal(row[name], arrays[name][number])
        for name, expected in objects_of(arrays, number).items():
            np.testing.assert_array_equal(row[name], expected)
        edges = arrays["edges"][slice(*arrays["edge_start"][number : number + 2])]
        assert row["edges"] == (edges - arrays["object_start"][number]).tolist()


GRID = "[[0, 1], [1, 0]]"
RAGGED = '{"train": [{"input": [[1, 2], [3]], "output": [[1]]}]}'
COLOUR_11 = '{"train": [{"input": [[1]], "output": [[1]]}], "test": [{"input": [[1, 11]]}]}'
BAD_FILES = {
    "not JSON": ("{", "bad.json is not JSON: Expecting property name"),
    "nested without end": ("[" * 100_000, "bad.json is not JSON: maximum recursion depth"),
    "ragged": (RAGGED, "bad.json, train[0].input: rows differ in length; a grid is a rectangle"),
    "a colour of 11": (COLOUR_11, "bad.json, test[0].input: row 0, column 1 holds 11; colours are 0 to 9"),
    "31 x 31": (json.dumps([[0] * 31] * 31), "bad.json: 31 x 31 cells; a grid has at most 30 x 30"),
    "31 x 31 in a list": (f"[{GRID}, {json.dumps([[0] * 31] * 31)}]", "bad.json[1]: 31 x 31 cells"),
    "no task": ('{"tests": []}', "bad.json is not an ARC task"),
    "an empty task": ('{"train": [], "test": []}', "bad.json holds no grid"),
    "an empty list": ("[]", "bad.json holds no grid"),
    "a number": ("7", "bad.json is neither an ARC task nor a grid"),
    "a row": ("[1, 2]", "bad.json: shape (2,); a grid has rows and columns"),
    "text": ('[["a"]]', "bad.json: cells of type"),
}


def check_refused(answer, said, folder):
    """One sentence, exit code 2, and no file that was not there before."""
    code, _, err = answer
    assert code == 2 and said in err and "Traceback" not in err, err
    assert len(err.strip().splitlines()) == 1 and err.startswith("jepa: "), err
    assert not [path.name for path in folder.iterdir() if "codes" in path.name]


@pytest.mark.parametrize("fault", BAD_FILES)
def test_a_bad_file_is_named_and_leaves_no_output(fault, command, tmp_path):
    content, said = BAD_FILES[fault]
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a_good.json").write_text(GRID)
    (tmp_path / "in" / "bad.json").write_text(content)
    answer = command("{run}", f"--input={tmp_path}/in", f"--output={tmp_path}/codes.npz")
    check_refused(answer, f"{tmp_path}/in/{said}", tmp_path)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (np.full((2, 2), 11), "bad.npy: row 0, column 0 holds 11"),
        (np.zeros((2, 2)), "bad.npy: cells of type float64"),
        (np.zeros((2, 2, 2), int), "bad.npy: shape (2, 2, 2)"),
        (np.zeros((0, 2), int), "bad.npy"),
        (np.array([[{}]]), "bad.npy is not an array of numbers as numpy.save writes it"),
        (b"", "bad.npy is not an array of numbers as numpy.save writes it"),
        (b"PK\x03\x04 an archive", "bad.npy is not an array of numbers as numpy.save writes it"),
    ],
)
def test_a_bad_array_is_named(content, said, command, tmp_path):
    if isinstance(content, bytes):
        (tmp_path / "bad.npy").write_bytes(content)
    else:
        np.save(tmp_path / "bad.npy", content)
    answer = command("{run}", f"--input={tmp_path}/bad.npy", f"--output={tmp_path}/codes.npz")
    check_refused(answer, f"{tmp_path}/{said}", tmp_path)


MISTAKES = {
    "{tmp}/nowhere --input={grid} --output={tmp}/codes.npz": "nowhere is not the folder of a run",
    "{tmp}/unsaved --input={grid} --output={tmp}/codes.npz": "there is no checkpoint in",
    "{run} --input={grid} --output={tmp}/codes.npz --checkpoint=7": "there is no checkpoint at step 7 in",
    "{run} --input={grid} --output={tmp}/codes.npz --checkpoint=last": "is 'latest', 'best' or a step, not 'last'",
    "{run} --input={tmp}/nowhere --output={tmp}/codes.npz": "there is no file or folder",
    "{run} --input=arc1-evl --output={tmp}/codes.npz": "did you mean 'arc1-eval'?",
    "{run} --input={tmp}/empty --output={tmp}/codes.npz": "empty has no *.json or *.npy file",
    "{run} --input={tmp}/notes.txt --output={tmp}/codes.npz": "notes.txt is neither a .json nor a .npy file",
    "{run} --input={grid} --output={tmp}/codes.csv": "codes.csv; its name must end in .npz or .parquet",
    "{run} --input={grid} --output={tmp}/nowhere/codes.npz": "there is no folder",
    "{run} --input={grid} --output={tmp}/folder.npz": "is a folder; it must be the name of a file",
    "{run} --input={grid} --output={tmp}/there.npz": "there.npz exists already; --overwrite replaces it",
    "{run} --input={grid} --output={tmp}/codes.npz --background=11": "must be task, own, a colour 0 to 9, or -1",
    "{run} --input={grid}": "the following arguments are required: --output; as in python -m jepa.encode runs/x",
    "{run} --input={grid} --output={tmp}/codes.npz --batch=3": "unrecognized arguments: --batch=3",
}


@pytest.mark.parametrize("line", MISTAKES)
def test_a_mistake_is_one_sentence(line, command, workdir, tmp_path):
    (tmp_path / "grid.json").write_text(GRID)
    (tmp_path / "notes.txt").write_text("")
    (tmp_path / "there.npz").write_text("kept")
    for folder in ("empty", "unsaved", "folder.npz"):
        (tmp_path / folder).mkdir()
    (tmp_path / "unsaved" / "config.json").write_text((workdir / "config.json").read_text())
    arguments = [part.format(tmp=tmp_path, grid=tmp_path / "grid.json", run="{run}") for part in line.split()]
    check_refused(command(*arguments), MISTAKES[line], tmp_path)
    assert (tmp_path / "there.npz").read_text() == "kept"


def test_without_pyarrow_parquet_is_refused_before_any_work(command, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    (tmp_path / "grid.json").write_text(GRID)
    answer = command("{run}", f"--input={tmp_path}/grid.json", f"--output={tmp_path}/codes.parquet")
    check_refused(answer, "pip install 'jepa[parquet]'", tmp_path)


def test_an_output_is_replaced_only_when_asked_and_only_by_a_whole_one(command, tmp_path):
    write_tasks(tmp_path / "in")
    output = tmp_path / "codes.npz"
    output.write_text("before")
    options = (f"--input={tmp_path}/in", f"--output={output}", "--overwrite")
    (tmp_path / "in" / "z.json").write_text("{")
    assert command("{run}", *options)[0] == 2 and output.read_text() == "before"
    (tmp_path / "in" / "z.json").unlink()
    assert command("{run}", *options)[0] == 0 and len(read(output)["pair"]) == 18
    assert sorted(path.name for path in tmp_path.iterdir()) == ["codes.npz", "in"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError("no space left"), MemoryError])
def test_whatever_stops_a_file_leaves_none(error, tmp_path):
    def blocks():
        yield {"pair": np.zeros(2), "object_start": np.arange(3), "edge_start": np.arange(3), "edges": np.zeros((2, 2))}
        raise error

    with pytest.raises(error if isinstance(error, type) else type(error)):
        encode.write(tmp_path / "codes.npz", blocks(), "{}")
    assert not list(tmp_path.iterdir())


def test_strings_of_a_file_have_the_length_of_the_longest(tmp_path):
    def block(*names):
        starts = {name: np.zeros(len(names) + 1, np.int64) for name in ("object_start", "edge_start")}
        return {"file": np.array(names), "edges": np.zeros((0, 2), np.int64), **starts}

    encode.write(tmp_path / "codes.npz", [block("a", "b"), block("longest"), block("c")], "{}")
    arrays = read(tmp_path / "codes.npz")
    assert arrays["file"].tolist() == ["a", "b", "longest", "c"] and arrays["edges"].shape == (0, 2)
    assert arrays["object_start"].tolist() == [0] * 5


def test_a_stream_names_the_grid_by_its_number(model):
    grids = [Grid(np.array([[1]]))] * 11 + [Grid(np.array([[12]]))]
    with pytest.raises(ValueError, match="grid 11: row 0, column 0 holds 12"):
        list(encode.stream(model, grids, chunk=5))


def test_embeddings_that_are_not_finite_are_no_result(model):
    def broken(*arguments):
        described = model.describe(*arguments)
        return described._replace(embeddings=described.embeddings * np.nan)

    with pytest.raises(ValueError, match="not finite"):
        list(encode.stream(model._replace(describe=broken), [Grid(np.array([[1]]))]))
