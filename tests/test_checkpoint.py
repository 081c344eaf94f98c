"""Weight files: the three forms read alike; damaged and hostile ones are refused, never run."""

from __future__ import annotations

import json
import math
import os
import pickle
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from makecheckpoint import (
    Stored,
    bf16,
    hf_names,
    op_global,
    op_tensor,
    op_value,
    safetensors_bytes,
    torch_pickle,
    torch_zip,
    write_safetensors,
    write_sharded,
    write_torch,
)

from rwkvsts.errors import CheckpointError
from rwkvsts.files.checkpoint import Checkpoint, TensorInfo, open_checkpoint
from rwkvsts.files.hub import resolve
from rwkvsts.files.names import canonical_name

RNG = np.random.default_rng(6)
ARRAYS = {
    "emb.weight": bf16(RNG.normal(size=(5, 4))),
    "blocks.0.ln0.weight": RNG.normal(size=4).astype(np.float32),
    "blocks.0.att.time_maa_x": RNG.normal(size=(1, 1, 4)).astype(np.float16),
    "blocks.10.ffn.key.weight": RNG.normal(size=(6, 4)).astype(np.float32),
    "ln_out.bias": np.zeros(4, np.float32),
    "head.weight": bf16(RNG.normal(size=(5, 4))),
}
DTYPES = {"float32": "F32", "float16": "F16", "uint16": "BF16"}


def opened(path: Path) -> Checkpoint:
    return open_checkpoint(resolve(path))


def assert_holds(checkpoint: Checkpoint, arrays: dict[str, np.ndarray]) -> None:
    assert set(checkpoint.tensors) == set(arrays)
    for name, array in arrays.items():
        assert checkpoint.tensors[name] == TensorInfo(DTYPES[array.dtype.name], array.shape)
        read = checkpoint.read(name)
        assert read.dtype == array.dtype
        assert read.flags.c_contiguous
        np.testing.assert_array_equal(read, array)


def read_all(path: Path) -> None:
    with opened(path) as checkpoint:
        for name in checkpoint.tensors:
            checkpoint.read(name)


def assert_refused(path: Path, *words: str) -> None:
    """Opening the file, or reading a tensor of it, is refused in one message with these words."""
    with pytest.raises(CheckpointError) as caught:
        read_all(path)
    message = str(caught.value)
    assert path.name in message
    assert len(message) < 1000
    for word in words:
        assert word in message


class TestForms:
    def test_golden_files_hold_the_same_tensors(self, shared: Path) -> None:
        stem = shared / "rwkv" / "tiny6v0_1m"
        with (
            opened(Path(f"{stem}_blinkdl_bf16.pth")) as pth,
            opened(Path(f"{stem}_hf_bf16.bin")) as torch,
            opened(Path(f"{stem}_hf_bf16.safetensors")) as safetensors,
        ):
            assert len(pth.tensors) == 12 * 28 + 6
            assert pth.tensors["emb.weight"] == TensorInfo("BF16", (256, 64))
            assert dict(pth.tensors) == dict(torch.tensors) == dict(safetensors.tensors)
            for name in pth.tensors:
                expected = pth.read(name).tobytes()
                assert torch.read(name).tobytes() == expected
                assert safetensors.read(name).tobytes() == expected

    def test_golden_file_as_its_own_library_reads_it(self, shared: Path) -> None:
        deserialize = pytest.importorskip("safetensors").deserialize
        path = shared / "rwkv" / "tiny6v0_1m_hf_bf16.safetensors"
        with opened(path) as checkpoint:
            for name, tensor in deserialize(path.read_bytes()):
                info = checkpoint.tensors[canonical_name(name)]
                assert (info.dtype, list(info.shape)) == (tensor["dtype"], tensor["shape"])
                assert checkpoint.read(canonical_name(name)).tobytes() == bytes(tensor["data"])

    @pytest.mark.parametrize("names", [dict, hf_names])
    def test_safetensors(self, tmp_path: Path, names: Callable[..., dict[str, np.ndarray]]) -> None:
        write_safetensors(tmp_path / "model.safetensors", names(ARRAYS))
        with opened(tmp_path) as checkpoint:
            assert_holds(checkpoint, ARRAYS)

    @pytest.mark.parametrize("names", [dict, hf_names])
    @pytest.mark.parametrize("ordered", [False, True])
    @pytest.mark.parametrize("parameter", [False, True])
    @pytest.mark.parametrize("root", ["archive", "003"])
    def test_torch(
        self,
        tmp_path: Path,
        names: Callable[..., dict[str, np.ndarray]],
        ordered: bool,
        parameter: bool,
        root: str,
    ) -> None:
        path = tmp_path / "model.pth"
        write_torch(path, names(ARRAYS), root=root, ordered=ordered, parameter=parameter)
        with opened(path) as checkpoint:
            assert_holds(checkpoint, ARRAYS)

    @pytest.mark.parametrize("suffix", [".safetensors", ".bin"])
    def test_shards(self, tmp_path: Path, suffix: str) -> None:
        write_sharded(tmp_path, hf_names(ARRAYS), suffix, shards=3)
        with opened(tmp_path) as checkpoint:
            assert_holds(checkpoint, ARRAYS)

    def test_content_tells_the_format(self, tmp_path: Path) -> None:
        write_torch(tmp_path / "weights.safetensors", ARRAYS)
        write_safetensors(tmp_path / "weights.pth", ARRAYS)
        for name in ("weights.safetensors", "weights.pth"):
            with opened(tmp_path / name) as checkpoint:
                assert_holds(checkpoint, ARRAYS)

    @pytest.mark.parametrize(
        ("hugging_face", "blinkdl"),
        [
            ("rwkv.embeddings.weight", "emb.weight"),
            ("rwkv.blocks.0.pre_ln.bias", "blocks.0.ln0.bias"),
            ("rwkv.blocks.7.attention.time_maa_w2", "blocks.7.att.time_maa_w2"),
            ("rwkv.blocks.23.feed_forward.key.weight", "blocks.23.ffn.key.weight"),
            ("rwkv.blocks.3.ln2.weight", "blocks.3.ln2.weight"),
            ("rwkv.ln_out.weight", "ln_out.weight"),
            ("head.weight", "head.weight"),
            ("something.attention.else", "something.attention.else"),
        ],
    )
    def test_canonical_name(self, hugging_face: str, blinkdl: str) -> None:
        assert canonical_name(hugging_face) == blinkdl
        assert canonical_name(blinkdl) == blinkdl

    @pytest.mark.parametrize("write", [write_safetensors, write_torch])
    def test_both_spellings_of_a_tensor(self, tmp_path: Path, write: Callable[..., None]) -> None:
        write(tmp_path / "x.pth", {**ARRAYS, "rwkv.embeddings.weight": ARRAYS["emb.weight"]})
        assert_refused(tmp_path / "x.pth", "'emb.weight'", "'rwkv.embeddings.weight'")


class TestReading:
    @pytest.mark.parametrize("write", [write_safetensors, write_torch])
    def test_holds_one_tensor_at_a_time(self, tmp_path: Path, write: Callable[..., None]) -> None:
        one = 4 * 2**20
        write(tmp_path / "x.pth", {f"t{i}": np.full(one // 4, i, np.float32) for i in range(4)})
        tracemalloc.start()
        try:
            with opened(tmp_path / "x.pth") as checkpoint:
                for i in range(4):
                    tensor = checkpoint.read(f"t{i}")
                    assert tensor[0] == tensor[-1] == i
                    del tensor
            assert tracemalloc.get_traced_memory()[1] < one + 2**20
        finally:
            tracemalloc.stop()

    @pytest.mark.parametrize("write", [write_safetensors, write_torch])
    def test_touches_only_the_tensor_asked_for(
        self, tmp_path: Path, write: Callable[..., None]
    ) -> None:
        path = tmp_path / "x.pth"
        write(path, {"first": np.ones(9, np.float32), "last": np.ones(1000, np.float32)})
        with opened(path) as checkpoint:
            os.truncate(path, path.stat().st_size - 2000)  # Cuts into `last` alone.
            np.testing.assert_array_equal(checkpoint.read("first"), np.ones(9, np.float32))
            with pytest.raises(CheckpointError, match="only .* bytes"):
                checkpoint.read("last")

    def test_unknown_name(self, tmp_path: Path) -> None:
        write_safetensors(tmp_path / "x.safetensors", ARRAYS)
        with opened(tmp_path) as checkpoint, pytest.raises(CheckpointError, match="'blocks.1"):
            checkpoint.read("blocks.1.ln1.weight")

    def test_closes_its_files(self, tmp_path: Path) -> None:
        write_safetensors(tmp_path / "x.safetensors", ARRAYS)
        with opened(tmp_path) as checkpoint:
            pass
        with pytest.raises(ValueError, match="closed"):
            checkpoint.read("emb.weight")

    @pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="root may read every file")
    def test_unreadable_file(self, tmp_path: Path) -> None:
        path = tmp_path / "x.pth"
        write_torch(path, ARRAYS)
        path.chmod(0)
        with pytest.raises(PermissionError, match=r"x\.pth"):
            opened(path)

    @pytest.mark.parametrize("dtype", ["F64", "I64", "F8_E4M3"])
    def test_unreadable_dtype_beside_readable_ones(self, tmp_path: Path, dtype: str) -> None:
        size = {"F64": 8, "I64": 8, "F8_E4M3": 1}[dtype]
        header = {
            "step": {"dtype": dtype, "shape": [1], "data_offsets": [0, size]},
            "emb.weight": {"dtype": "F32", "shape": [1], "data_offsets": [size, size + 4]},
        }
        path = tmp_path / "x.safetensors"
        data = bytes(size) + np.float32(2.5).tobytes()
        path.write_bytes(safetensors_bytes(header, data))
        with opened(path) as checkpoint:
            assert checkpoint.read("emb.weight") == 2.5
            remedy = "Convert it by tensor.float" if dtype == "F64" else "that is not quantised"
            with pytest.raises(CheckpointError, match=f"'step': .*found {dtype}.*{remedy}"):
                checkpoint.read("step")

    @pytest.mark.parametrize("name", ["emb\0.weight", "step\0"])
    def test_a_name_with_a_nul_is_shown(self, tmp_path: Path, name: str) -> None:
        write_safetensors(tmp_path / "x.safetensors", {**ARRAYS, name: np.ones(1, np.float32)})
        with pytest.raises(CheckpointError, match=r"tensor '\w+\\x00.*a name without NUL"):
            opened(tmp_path)


class TestViews:
    """Tensors of a torch file are views of storages: offset, size, strides."""

    STORAGE = np.arange(24, dtype=np.float32)

    def write(self, path: Path, **views: tuple[object, object, object]) -> None:
        entries: dict[str, Stored | bytes] = {
            name: Stored("F32", "0", 24, *view)  # type: ignore[arg-type]
            for name, view in views.items()
        }
        torch_zip(path, torch_pickle(entries), {"0": self.STORAGE.tobytes()})

    def test_offsets_strides_and_shared_storage(self, tmp_path: Path) -> None:
        grid = self.STORAGE.reshape(2, 3, 4)
        expected = {
            "whole": grid,
            "permuted": grid.transpose(2, 0, 1),
            "row": grid[1, 2],
            "column": grid[:, 1, 3],
            "block": grid[:, 1:, ::2],
            "one": grid[1:, 2:, 3:],
            "scalar": grid[1, 0, 1],
            "none": grid[:, :0],
        }
        views = {
            name: (
                (view.__array_interface__["data"][0] - grid.__array_interface__["data"][0]) // 4,
                view.shape,
                tuple(stride // 4 for stride in view.strides),
            )
            for name, view in ((name, np.asarray(view)) for name, view in expected.items())
            if name not in ("scalar", "none")
        }
        views["scalar"] = (13, (), ())
        views["none"] = (24, (2, 0, 4), (12, 4, 1))
        self.write(tmp_path / "x.pth", **views)
        with opened(tmp_path) as checkpoint:
            assert_holds(checkpoint, {name: np.asarray(v) for name, v in expected.items()})

    @pytest.mark.parametrize(
        "view",
        [
            (1, (24,), (1,)),  # One element past the end.
            (25, (0,), (1,)),
            (0, (2, 2), (23, 2)),
            (0, (5, 5), (1, 1)),  # 25 elements of 9 places in 24: few bytes claim many.
            (0, (2**40,), (0,)),
            (0, (2**47, 2**47), (0, 0)),
            (-1, (2,), (1,)),
            (0, (-2,), (1,)),
            (0, (2,), (-1,)),
            (0, (2**200,), (1,)),
            (0, (2, 2), (2,)),
            (0, (1,) * 9, (1,) * 9),
            (0.0, (2,), (1,)),
            (True, (2,), (1,)),
            (0, (2.0,), (1,)),
            (0, (True,), (1,)),
            (0, ("2",), (1,)),
            (0, 2, (1,)),
            (None, (2,), (1,)),
            (0, ((2,),), (1,)),
        ],
    )
    def test_views_beyond_their_storage(
        self, tmp_path: Path, view: tuple[object, object, object]
    ) -> None:
        self.write(tmp_path / "x.pth", bad=view)
        assert_refused(tmp_path / "x.pth", "'bad'", "expected", "found")

    def test_storage_read_in_two_ways(self, tmp_path: Path) -> None:
        entries = {
            "a": Stored("F32", "0", 2, 0, (2,), (1,)),
            "b": Stored("BF16", "0", 4, 0, (4,), (1,)),
        }
        torch_zip(tmp_path / "x.pth", torch_pickle(entries), {"0": bytes(8)})
        assert_refused(tmp_path / "x.pth", "'b'", "one dtype and size for storage '0'")


def entry(
    shape: object = (2,), offsets: object = (0, 8), dtype: object = "F32"
) -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


DUPLICATE = b'{"a":%s,"a":%s}' % ((json.dumps(entry()).encode(),) * 2)
HUGE = b'{"a":{"dtype":"F32","shape":[%s],"data_offsets":[0,8]}}' % (b"9" * 100)

BAD_HEADERS = {
    "duplicate name": (DUPLICATE, 8, "'a' twice"),
    "not JSON": (b"{oops", 0, "JSON"),
    "not UTF-8": (b'{"\xff":1}', 0, "JSON"),
    "not an object": (b"{".replace(b"{", b"[1]"), 0, "JSON object"),
    "too deep": (b'{"a":' + b"[" * 200_000 + b"]" * 200_000 + b"}", 0, "JSON"),
    "huge integer": (HUGE, 8, "one of 100 digits"),
    "not a number": ({"a": entry(shape=[math.nan])}, 8, "integers"),
    "fraction": ({"a": entry(shape=[2.0])}, 8, "integers"),
    "boolean": ({"a": entry(shape=[True, 2])}, 8, "'a'"),
    "negative size": ({"a": entry(shape=[-2])}, 8, "'a'"),
    "negative offset": ({"a": entry(offsets=[-8, 0])}, 8, "'a'"),
    "many dimensions": ({"a": entry(shape=[1] * 9 + [2])}, 8, "'a'"),
    "product": ({"a": entry(shape=[2**40, 2**40])}, 8, "2**48 elements"),
    "product that wraps": ({"a": entry(shape=[2**32, 2**30], offsets=[0, 0])}, 0, "2**48"),
    "shape against offsets": ({"a": entry(shape=[3])}, 8, "12 bytes for F32 [3]"),
    "offsets in reverse": ({"a": entry(offsets=[8, 0])}, 8, "'a'"),
    "one offset": ({"a": entry(offsets=[8])}, 8, "'a'"),
    "no shape": ({"a": {"dtype": "F32", "data_offsets": [0, 8]}}, 8, "fields"),
    "another field": ({"a": {**entry(), "x": 1}}, 8, "fields"),
    "endless name": ({"a" * 1_000_000: entry(shape=[3])}, 8, "aaa..."),
    "no entry": ({"a": 1}, 8, "fields"),
    "dtype that is no name": ({"a": entry(dtype="f 4")}, 8, "the name of a dtype"),
    "dtype of another type": ({"a": entry(dtype=["F32"])}, 8, "the name of a dtype"),
    "hole before": ({"a": entry(offsets=[4, 12])}, 12, "'a'"),
    "hole between": ({"a": entry(), "b": entry(offsets=[12, 20])}, 20, "'b'"),
    "overlap": ({"a": entry(), "b": entry(offsets=[4, 12])}, 12, "'b'"),
    "same place": ({"a": entry(), "b": entry()}, 8, "'b'"),
    "too few bytes": ({"a": entry()}, 7, "bytes"),
    "too many bytes": ({"a": entry()}, 9, "bytes"),
    "no tensors": ({"__metadata__": {}}, 0, "expected tensors"),
}


class TestBadSafetensors:
    @pytest.mark.parametrize("case", BAD_HEADERS)
    def test_header(self, tmp_path: Path, case: str) -> None:
        header, data_bytes, words = BAD_HEADERS[case]
        path = tmp_path / "model.safetensors"
        path.write_bytes(safetensors_bytes(header, bytes(data_bytes)))
        with pytest.raises(CheckpointError):
            opened(path)  # Before any tensor is read.
        assert_refused(path, "expected", "found", words)

    @pytest.mark.parametrize("length", [2**64 - 1, 2**63, 101_000_000, 200])
    def test_header_length(self, tmp_path: Path, length: int) -> None:
        path = tmp_path / "model.safetensors"
        path.write_bytes(length.to_bytes(8, "little") + b'{"a":1}' + bytes(100))
        assert_refused(path, "header: expected at most", str(length))

    def test_endless_header(self, tmp_path: Path) -> None:
        path = tmp_path / "model.safetensors"
        path.write_bytes((101_000_000).to_bytes(8, "little") + b"{")
        os.truncate(path, 102_000_000)
        assert_refused(path, "header: expected at most 100000000 bytes")

    @pytest.mark.parametrize("size", [0, 1, 7, 8, 9])
    def test_almost_nothing(self, tmp_path: Path, size: int) -> None:
        path = tmp_path / "model.safetensors"
        path.write_bytes(bytes(size))
        assert_refused(path, "expected")


class Command:
    """What pickle would call, were the file unpickled."""

    def __init__(self, function: Callable[..., object], *arguments: object) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> tuple[object, ...]:
        return self.call


# The rest of a storage's label, after its class.
LABEL_TAIL = op_value("0") + op_value("cpu") + op_value(4) + b"tQ"


class TestHostilePickles:
    def refused(self, path: Path, pickled: bytes, *words: str) -> None:
        torch_zip(path, pickled, {"0": bytes(16)})
        assert_refused(path, "data.pkl", *words)

    @pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
    @pytest.mark.parametrize("inside", [False, True])
    def test_commands_are_not_run(self, tmp_path: Path, protocol: int, inside: bool) -> None:
        trace = tmp_path / "it-ran"
        command = Command(os.mkdir, str(trace))
        pickled = pickle.dumps({"emb.weight": command} if inside else command, protocol)
        pickle.loads(pickled)  # The bait works where a file is unpickled.
        trace.rmdir()
        self.refused(tmp_path / "x.pth", pickled, "Nothing in it was run")
        assert not trace.exists()

    @pytest.mark.parametrize(
        "name",
        ["os system", "posix system", "builtins eval", "builtins getattr", "torch load"]
        + ["torch._utils _rebuild_tensor", "torch._utils _rebuild_tensor_v2.__globals__"],
    )
    def test_names_outside_the_list(self, tmp_path: Path, name: str) -> None:
        call = op_global(name) + op_value(("true",)) + b"R"
        for pickled in (torch_pickle({"a": call}), b"\x80\x02" + call + b"."):
            self.refused(tmp_path / "x.pth", pickled, f"the name '{name}'")

    @pytest.mark.parametrize(
        "call",
        [
            op_global("collections OrderedDict") + op_value((1,)) + b"R",
            op_global("torch FloatStorage") + op_value((4,)) + b"R",
            op_global("torch._utils _rebuild_tensor_v2")
            + op_value((0, 0, (4,), (1,), 0, 0))
            + b"R",
            op_global("torch._utils _rebuild_tensor_v2") + b")R",
            op_global("torch._utils _rebuild_parameter") + op_value((1, 2, 3)) + b"R",
            op_value("os.system") + op_value(("true",)) + b"R",
            op_tensor(Stored("F32", "0", 4, 0, (4,), (1,))) + b")R",
            op_global("collections OrderedDict") + b"}b",  # BUILD on a name.
            op_value("a") + b"}b",
            op_value(1) + b"Q",
            op_value(("storage", "torch FloatStorage", "0", "cpu", 4)) + b"Q",
            b"(" + op_value("storage") + op_global("torch FloatStorage") + b"}" + LABEL_TAIL[6:],
            b"(" + op_value("module") + op_global("torch FloatStorage") + LABEL_TAIL,
            op_value(1) + op_value("k") + op_value(2) + b"s",  # SETITEM on a number.
        ],
    )
    def test_calls_of_the_wrong_kind(self, tmp_path: Path, call: bytes) -> None:
        self.refused(tmp_path / "x.pth", torch_pickle({"a": call}), "expected", "found")

    @pytest.mark.parametrize(
        "pickled",
        [
            b"",
            b".",
            b"\x80\x02",
            b"\x80\x02}",
            b"\x80\x02R.",
            b"\x80\x02u.",
            b"\x80\x02t.",
            b"\x80\x02(u.",
            b"\x80\x02h\x07.",
            b"\x80\x02q\x00.",
            b"\x80\x02Q.",
            b"\x80\x02\x85.",
            b"\x80\x02X\xff\xff\xff\x7fabc.",
            b"\x80\x02X\x01\x00\x00\x00\xff.",
            b"\x80\x02\xff.",
            b"\x80\x02ctorch",
            b"\x80\x02\x8a\xff\x01.",
        ],
    )
    def test_broken_pickles(self, tmp_path: Path, pickled: bytes) -> None:
        torch_zip(tmp_path / "x.pth", pickled, {})
        assert_refused(tmp_path / "x.pth", "expected", "found")

    @pytest.mark.parametrize("use", ["value", "key", "argument", "top"])
    def test_small_pickles_of_huge_values(self, tmp_path: Path, use: str) -> None:
        # 2**60 leaves in 60 doublings, and a nest too deep for recursion.
        doubled = b"K\x01" + b"".join(b"q%ch%c\x86" % (i, i) for i in range(60))
        deep = b")" + b"\x85" * 200_000
        for value in (doubled, deep):
            pickled = {
                "value": torch_pickle({"a": value}),
                "key": b"\x80\x02}" + value + b"K\x01s.",
                "argument": torch_pickle(
                    {"a": op_global("collections OrderedDict") + value + b"R"}
                ),
                "top": b"\x80\x02" + value + b".",
            }[use]
            torch_zip(tmp_path / "x.pth", pickled, {})
            assert_refused(tmp_path / "x.pth", "expected", "found")

    def test_names_that_occur_twice(self, tmp_path: Path) -> None:
        tensor = op_tensor(Stored("F32", "0", 4, 0, (4,), (1,)))
        twice = (op_value("a") + tensor) * 2
        self.refused(tmp_path / "x.pth", b"\x80\x02}(" + twice + b"u.", "'a' twice")


class TestBadZips:
    PICKLED = torch_pickle({"a": Stored("F32", "0", 4, 0, (4,), (1,))})

    def test_big_endian(self, tmp_path: Path) -> None:
        torch_zip(tmp_path / "x.pth", self.PICKLED, {"0": bytes(16)}, byteorder=b"big")
        assert_refused(tmp_path / "x.pth", "little-endian")

    def test_compressed(self, tmp_path: Path) -> None:
        path = tmp_path / "x.pth"
        torch_zip(path, self.PICKLED, {"0": bytes(16)}, compression=zipfile.ZIP_DEFLATED)
        assert_refused(path, "stored member", "compressed")

    @pytest.mark.parametrize("storages", [{}, {"1": bytes(16)}, {"0": bytes(15)}, {"0": bytes(20)}])
    def test_storage_missing_or_of_another_size(
        self, tmp_path: Path, storages: dict[str, bytes]
    ) -> None:
        torch_zip(tmp_path / "x.pth", self.PICKLED, storages)
        assert_refused(tmp_path / "x.pth", "'a'", "storage '0' of 4 x 4 bytes")

    def test_no_pickle_or_two(self, tmp_path: Path) -> None:
        path = tmp_path / "x.pth"
        for roots, found in (([], "another zip, of 'readme'"), (["a", "b"], "2")):
            with zipfile.ZipFile(path, "w") as archive:
                archive.writestr("readme", b"")
                for root in roots:
                    archive.writestr(f"{root}/data.pkl", self.PICKLED)
            assert_refused(path, "one member ROOT/data.pkl", f"found {found}")

    def test_empty_zip(self, tmp_path: Path) -> None:
        with zipfile.ZipFile(tmp_path / "x.pth", "w"):
            pass
        assert_refused(tmp_path / "x.pth", "one member ROOT/data.pkl", "found an empty zip")

    @pytest.mark.filterwarnings("ignore:Duplicate name")
    def test_member_that_occurs_twice(self, tmp_path: Path) -> None:
        path = tmp_path / "x.pth"
        torch_zip(path, self.PICKLED, {"0": bytes(16)})
        with zipfile.ZipFile(path, "a") as archive:
            archive.writestr("archive/data/0", b"\x01" * 16)
        assert_refused(path, "'archive/data/0'", "one member of this name")

    def test_local_header_that_is_none(self, tmp_path: Path) -> None:
        path = tmp_path / "x.pth"
        torch_zip(path, self.PICKLED, {"0": bytes(16)})
        for member in zipfile.ZipFile(path).infolist():
            damaged = bytearray(path.read_bytes())
            damaged[member.header_offset + 2] ^= 1
            (tmp_path / "y.pth").write_bytes(damaged)
            assert_refused(tmp_path / "y.pth", member.filename, "local header")

    def test_members_that_overlap(self, tmp_path: Path) -> None:
        path = tmp_path / "x.pth"
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("archive/data.pkl", self.PICKLED)
            archive.writestr("archive/data/0", bytes(16))
            for member in archive.infolist():
                member.header_offset = 0
        assert_refused(path, "bytes of its own")

    def test_description_too_long(self, tmp_path: Path) -> None:
        torch_zip(tmp_path / "x.pth", bytes(5 * 2**20), {})
        assert_refused(tmp_path / "x.pth", "at most 4194304 bytes")

    @pytest.mark.parametrize(
        ("start", "words"),
        [
            (b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.", "before version 1.6"),
            (b"GGUF\x03\x00\x00\x00", "a GGUF file"),
            (b"fmgg\x65\x00\x00\x00", "a rwkv.cpp file"),
            (b"version https://git-lfs.github.com/spec/v1\noid", "a Git LFS pointer"),
            (b"<!DOCTYPE html><html>", "a web page, not weights"),
            (b"\x1f\x8b\x08\x00", "compressed by gzip: unpack it"),
            (b"\x00\x01\x02\x03", r"found a file that starts with b'\x00\x01\x02\x03"),
            (b"PK\x03\x04 and no more", "a zip file as torch.save writes"),
            (b"", "found an empty file"),
        ],
    )
    def test_other_files(self, tmp_path: Path, start: bytes, words: str) -> None:
        path = tmp_path / "model.bin"
        path.write_bytes(start and start + bytes(50))
        assert_refused(path, words)


class TestTruncation:
    """A file that ends too early is refused wherever it ends; other damage is tests/fuzz's."""

    @staticmethod
    def survives(path: Path) -> bool:
        try:
            read_all(path)
        except CheckpointError:
            return False
        return True

    @pytest.mark.parametrize("write", [write_safetensors, write_torch])
    def test_every_truncation_is_refused(self, tmp_path: Path, write: Callable[..., None]) -> None:
        path = tmp_path / "x.pth"
        write(path, {"emb.weight": ARRAYS["emb.weight"], "ln_out.bias": ARRAYS["ln_out.bias"]})
        whole = path.read_bytes()
        assert self.survives(path)
        for size in range(len(whole)):
            path.write_bytes(whole[:size])
            assert not self.survives(path), size
