"""What is exported loads elsewhere and is the model that was trained; what is not, is not kept."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import zkit_mistral.merging
from exports import KINDS, ROWS, Silent, write_run, write_weights
from gguf import GGUFReader
from test_cli import call
from zkit_export.exporting import Export
from zkit_export.hub import push
from zkit_export.parity import Parity
from zkit_export.refusal import ParityError
from zkit_export.served import Served, logits_of
from zkit_export.wish import Wish
from zkit_mistral.quiet import quiet

from zephyr_kit import ZkitError
from zephyr_kit.models import find_model
from zephyr_kit.plugins import Plugins

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("runs")
    weights = write_weights(folder / "weights")
    (weights / "README.md").write_text("---\nlicense: apache-2.0\n---\n# Base\n", "utf-8")
    rounded = write_weights(folder / "rounded", torch.bfloat16)
    return {kind: write_run(folder / kind, kind, rounded if kind == "qlora" else weights) for kind in KINDS}


def export(run: Path, to: Path, said: list[str] | None = None, **wish) -> list[Parity]:
    return Export(find_model(str(run), Plugins()), Wish(to, **wish), CPU, Silent(said if said is not None else [])).run()


@pytest.mark.parametrize("kind", KINDS)
def test_whole_weights_and_gguf_are_what_was_trained(runs, tmp_path, kind):
    found = export(runs[kind], tmp_path / "out", merge=True, dtype="float32", gguf=("f32", "Q8_0"))
    weights, gguf, rounded = found
    assert weights.num_tokens == gguf.num_tokens > 100
    assert gguf.mean == pytest.approx(weights.mean, abs=1e-4)
    assert rounded.mean > gguf.mean
    if kind != "qlora":  # which computes in bfloat16
        assert weights.mean < 1e-5
        assert weights.first_divergence is None
    out = tmp_path / "out"
    fields = GGUFReader(next(out.glob("*-F32.gguf"))).fields
    assert fields["tokenizer.chat_template"].contents() == Served(out).template
    assert json.loads((out / "parity.json").read_text("utf-8"))["exports"][0]["what"] == "weights in float32"
    assert len({file.stat().st_mode for file in out.iterdir()}) == 1, "others may read them all, or none"
    assert not list(tmp_path.glob(".*"))


def test_llama_is_written_as_gguf(tmp_path):
    """Qwen's too, but transformers' reader takes them in their own sizes alone."""
    run = write_run(tmp_path / "run", "full", write_weights(tmp_path / "weights", architecture="Llama"))
    assert max(one.mean for one in export(run, tmp_path / "out", gguf=("f32",))) < 1e-5


def test_an_architecture_that_is_not_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    run = write_run(tmp_path / "run", "full", write_weights(tmp_path / "weights", architecture="Gemma"))
    with pytest.raises(ZkitError, match=r"GemmaForCausalLM is not written as GGUF here .* convert_hf_to_gguf\.py is not on"):
        export(run, tmp_path / "out", gguf=("f32",))


@pytest.mark.parametrize("kind", ["lora", "stacked"])
def test_an_adapter_loads_in_peft(runs, tmp_path, kind):
    from peft import AutoPeftModelForCausalLM

    (parity,) = export(runs[kind], tmp_path / "out")
    assert parity.what == "adapter"
    assert parity.mean < 1e-6
    with quiet():
        theirs = logits_of(AutoPeftModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32).eval())
    export(runs[kind], tmp_path / "whole", merge=True)
    from transformers import AutoModelForCausalLM

    whole = logits_of(AutoModelForCausalLM.from_pretrained(tmp_path / "whole", dtype=torch.float32).eval())
    from tiny import random_trees

    for tree in random_trees(3):
        torch.testing.assert_close(theirs(tree), whole(tree), rtol=1e-4, atol=1e-4)


def test_what_a_server_reads_is_what_was_trained(runs, tmp_path):
    """Transformers' own tokenizer and template, on the folder."""
    from transformers import AutoTokenizer

    export(runs["lora"], tmp_path / "out", merge=True)
    model = find_model(str(runs["lora"]), Plugins())
    tokenizer, theirs = model.backend.tokenizer(model.start), AutoTokenizer.from_pretrained(tmp_path / "out")
    for row in ROWS:
        ids = theirs.apply_chat_template(row["messages"][:1], add_generation_prompt=True)["input_ids"]
        from zephyr_kit.example import Example, Message

        turns = tuple(Message(**turn) for turn in row["messages"])
        assert ids == tokenizer.encode(Example(turns[:1], (turns[1:],))).prompt.tolist()
    settings = json.loads((tmp_path / "out" / "generation_config.json").read_text("utf-8"))
    assert settings["eos_token_id"] == sorted(tokenizer.ends)


# Planted errors


def leave_out(monkeypatch, *layers: str) -> None:
    merged = zkit_mistral.merging.Adapter.merged

    def planted(self, layer, weight):
        return weight if not layers or layer in layers else merged(self, layer, weight)

    monkeypatch.setattr(zkit_mistral.merging.Adapter, "merged", planted)


def test_an_adapter_that_is_left_out_is_found(runs, tmp_path, monkeypatch):
    leave_out(monkeypatch)
    with pytest.raises(ParityError, match="is not the layer that was trained: what it writes differs by"):
        export(runs["qlora"], tmp_path / "out", merge=True)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", ["lora", "qlora"])
def test_one_layer_without_its_adapter_is_named(runs, tmp_path, monkeypatch, kind):
    leave_out(monkeypatch, "model.layers.1.self_attn.k_proj")
    with pytest.raises(ParityError, match=r"^model\.layers\.1\.self_attn\.k_proj\.weight is not the layer"):
        export(runs[kind], tmp_path / "out", merge=True)


def test_a_wrong_scale_is_found(runs, tmp_path, monkeypatch):
    scale = zkit_mistral.merging.Adapter.scale
    monkeypatch.setattr(zkit_mistral.merging.Adapter, "scale", lambda self, layer: 0.9 * scale(self, layer))
    with pytest.raises(ParityError):
        export(runs["stacked"], tmp_path / "out", merge=True)


def test_layers_that_are_all_wrong_alike_are_found(runs, tmp_path, monkeypatch):
    """By so little that log-probabilities do not tell."""
    merged = zkit_mistral.merging.Adapter.merged
    monkeypatch.setattr(zkit_mistral.merging.Adapter, "merged", lambda self, layer, weight: 1.012 * merged(self, layer, weight))
    with pytest.raises(ParityError, match=r"is not the layer that was trained: .* where its type explains 0\.80%"):
        export(runs["qlora"], tmp_path / "out", merge=True)


def test_log_probabilities_find_what_no_layer_shows(runs, tmp_path, monkeypatch):
    """The embeddings, which are no linear layer."""
    merged = zkit_mistral.merging.Adapter.merged
    planted = lambda self, layer, weight: 1.02 * weight if layer == "model.embed_tokens" else merged(self, layer, weight)  # noqa: E731
    monkeypatch.setattr(zkit_mistral.merging.Adapter, "merged", planted)
    monkeypatch.setattr("zkit_export.layers._error", lambda *_: 0.0)
    with pytest.raises(ParityError, match="weights in float32 is not the model that was trained: log-probabilities differ by"):
        export(runs["full"], tmp_path / "out")


def test_a_gguf_that_turns_heads_wrongly_is_found(runs, tmp_path, monkeypatch):
    """Its tensors are read back as they were written, so only the model itself can tell."""
    monkeypatch.setattr("zkit_export.gguf_file.Source._rotated", lambda self, name, tensor: tensor)
    with pytest.raises(ParityError, match="GGUF F32 is not the model that was trained"):
        export(runs["full"], tmp_path / "out", gguf=("f32",))


def test_a_gguf_with_another_tensor_is_found(runs, tmp_path, monkeypatch):
    from zkit_export import gguf_file

    packed = gguf_file._packed
    monkeypatch.setattr(gguf_file, "_packed", lambda tensor, stored: packed(tensor * 1.01, stored))
    with pytest.raises(ParityError, match=r"full-sft-F32\.gguf: .* differs by 1\.00% from what it was made of"):
        export(runs["full"], tmp_path / "out", gguf=("f32",))


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda text: text.replace("'<|' + message", "'<|x' + message"), "other text"),
        (lambda text: "{{ raise_exception('no') }}", "refuses a dialogue that was trained with: no"),
        (lambda text: text.replace("{{- '<|assistant|>\\n' -}}", "{{- '<|assistant|>' -}}"), "makes other tokens of a prompt"),
    ],
)
def test_another_template_is_found(runs, tmp_path, monkeypatch, edit, message):
    own = Served.template.fget
    monkeypatch.setattr(Served, "template", property(lambda self: edit(own(self))))
    with pytest.raises(ParityError, match=message):
        export(runs["full"], tmp_path / "out")


def test_another_template_in_the_gguf_is_found(runs, tmp_path, monkeypatch):
    monkeypatch.setattr("gguf.GGUFWriter.add_chat_template", lambda self, text: self.add_string("tokenizer.chat_template", text + " "))
    with pytest.raises(ParityError, match=r"full-sft-F16\.gguf: holds another chat template than was trained with"):
        export(runs["full"], tmp_path / "out", gguf=("f16",))


# The command, llama.cpp, the hub, the card


def test_the_command_and_its_card(runs, tmp_path, capsys):
    code, out, err = call(capsys, "export", runs["stacked"], "--to", tmp_path / "out", "--merge", "--device", "cpu")
    assert (code, err) == (0, "")
    assert "weights in float32" in out
    assert out.endswith("the folder's template, and the tokens that its tokenizer makes of prompts, are as trained\n")
    card = (tmp_path / "out" / "README.md").read_text("utf-8")
    assert card.startswith("---\n")
    assert "\nlicense: apache-2.0\n---\n" in card
    assert "- stage `sft`: objective `sft`; data jsonl: path" in card
    assert "- stage `dpo`: objective `sft`" in card
    assert "| weights in float32 |" in card
    again = call(capsys, "export", runs["stacked"], "--to", tmp_path / "out")
    assert again[::2] == (1, f"error: {tmp_path / 'out'}: is there already; name a folder that is not\n")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--gguf", "Q4_K_M"), "--gguf Q4_K_M: needs llama.cpp's llama-quantize on the PATH"),
        (("--gguf", "Q4KM"), "--gguf Q4KM: no type of llama.cpp is named so"),
        (("--stage", "sfd"), "has no trained stage `sfd`; did you mean `sft`?"),
    ],
)
def test_what_is_missing_is_told_before_anything_is_loaded(runs, tmp_path, capsys, monkeypatch, arguments, message):
    monkeypatch.setenv("PATH", str(tmp_path))
    code, _, err = call(capsys, "export", runs["lora"], "--to", tmp_path / "out", *arguments)
    assert code == (2 if "--stage" in arguments else 1)
    assert message in err


def test_few_bits_are_left_to_llama_cpp(runs, tmp_path, monkeypatch):
    """A program by its name, called as llama.cpp's is; it writes what gguf can, and the result is compared as any other."""
    program = tmp_path / "bin" / "llama-quantize"
    program.parent.mkdir()
    code = "import shutil, sys; shutil.copy(*sys.argv[1:3]); assert sys.argv[3] == 'Q4_K_M'"
    program.write_text(f"#!{sys.executable}\n{code}\n", "utf-8")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(program.parent))
    found = export(runs["lora"], tmp_path / "out", gguf=("q4_k_m",))
    assert [one.what for one in found] == ["weights in float32", "GGUF Q4_K_M"]
    assert [file.name for file in (tmp_path / "out").glob("*.gguf")] == ["lora-sft-Q4_K_M.gguf"]
    assert not list((tmp_path / "out").glob(".*"))
    program.write_text(f"#!{sys.executable}\nimport sys; sys.exit('no such type')\n", "utf-8")
    with pytest.raises(ZkitError, match="llama-quantize failed with exit code 1: no such type"):
        export(runs["lora"], tmp_path / "again", gguf=("q4_k_m",))


def test_the_hub_gets_the_folder(tmp_path, monkeypatch):
    calls = []

    class Hub:
        def create_repo(self, name, **how):
            calls.append((name, how))
            return type("Url", (str,), {"repo_id": name})(f"https://hub/{name}")

        def upload_folder(self, **how):
            calls.append(how)
            if how["repo_id"] == "me/full":
                raise OSError("no room left")

    monkeypatch.setattr("huggingface_hub.HfApi", Hub)
    assert push(tmp_path, "me/mine", public=False) == "https://hub/me/mine"
    assert calls[0] == ("me/mine", {"private": True, "exist_ok": True})
    assert calls[1]["folder_path"] == tmp_path
    with pytest.raises(ZkitError, match=r"me/full: the hub does not take it \(no room left\); the export is in"):
        push(tmp_path, "me/full", public=True)


def test_a_model_outside_of_a_run_is_exported_too(runs, tmp_path):
    found = export(runs["lora"] / "sft" / "model", tmp_path / "one", merge=True)
    export(tmp_path / "one", tmp_path / "two", gguf=("f16",))
    assert found[0].num_tokens > 0
    assert (tmp_path / "two" / "one-F16.gguf").exists()


def test_runs_are_served_under_their_names(runs, capsys, monkeypatch):
    served = []
    monkeypatch.setattr("zephyr_kit.serving.ChatServer.run", lambda self: (served.append(self), self._server.server_close()))
    sft = runs["stacked"] / "sft" / "model"
    code, out, _ = call(capsys, "chat", runs["stacked"], "--against", sft, "--serve", "--port", 0, "--device", "cpu", "--top-k", 5)
    assert code == 0
    assert list(served[0].speakers) == ["stacked-dpo", "stacked-sft"]
    assert served[0].usual.top_k == 5
    assert f'base_url = "http://127.0.0.1:{served[0].port}/v1"' in out
    lost = call(capsys, "chat", runs["full"], "--serve", "--token-env", "ZKIT_NO_SUCH_TOKEN")
    assert lost[::2] == (1, "error: --token-env ZKIT_NO_SUCH_TOKEN: there is no environment variable ZKIT_NO_SUCH_TOKEN, or it is empty\n")
    same = call(capsys, "chat", sft, "--against", sft)
    assert same[0] == 1
    assert "is the same model; name another" in same[2]


def test_the_plugin_is_quick_to_list(tmp_path):
    script = "import sys; from zephyr_kit.cli import build; build(); assert not {'torch', 'transformers', 'gguf'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", script], check=True, cwd=tmp_path)
