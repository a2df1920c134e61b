"""Frozen language models by one call, `complete(prompt, max_tokens)`: a transformers model in this process, or any
server with OpenAI's interface; replies are kept in a folder, so that a run that is repeated costs nothing."""

from __future__ import annotations

import hashlib
import json
import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

from pyramid.files import replacing


class LanguageModel(Protocol):
    @property
    def name(self) -> str:
        """Which one, for the cache and the report."""

    @property
    def version(self) -> str:
        """What tells it from another of its name; empty where that is not known."""

    def complete(self, prompt: str, max_tokens: int) -> str:
        """The continuation of a prompt."""

    def count(self, text: str) -> int:
        """Tokens of a text, about."""


class LocalModel:
    """A transformers causal LM by folder or hub id, the likeliest token at each step. A model with a chat template is
    given the prompt as a message."""

    def __init__(self, name: str, device: str = "cpu") -> None:
        from transformers import AutoModelForCausalLM, AutoTokenizer

        self._name = name
        try:
            self.tokenizer = AutoTokenizer.from_pretrained(name)
            self.model: Any = AutoModelForCausalLM.from_pretrained(name).to(device).eval()
        except (OSError, ValueError) as error:
            told = " ".join(f"{type(error).__name__}: {error}".split())[:200]
            raise ValueError(f"{name}: expected a causal language model of transformers, got {told}") from None
        limits = (self.tokenizer.model_max_length, getattr(self.model.config, "max_position_embeddings", None))
        self.limit = min(limit for limit in limits if limit)

    @property
    def name(self) -> str:
        return self._name

    @property
    def version(self) -> str:
        """The commit of a hub model; of a folder its files, by size and time."""
        if commit := getattr(self.model.config, "_commit_hash", None):
            return commit
        files = sorted(path for path in Path(self._name).glob("*") if path.is_file())
        facts = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in files]
        return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:12]

    @torch.no_grad()
    def complete(self, prompt: str, max_tokens: int) -> str:
        """Raises ValueError for a prompt that does not fit the model."""
        if self.tokenizer.chat_template:
            message = [{"role": "user", "content": prompt}]
            prompt = self.tokenizer.apply_chat_template(message, tokenize=False, add_generation_prompt=True)
        inputs = self.tokenizer(prompt, return_tensors="pt", add_special_tokens=not self.tokenizer.chat_template)
        length = inputs["input_ids"].shape[1]
        if length + max_tokens > self.limit:
            raise ValueError(
                f"{self._name}: expected a prompt of at most {self.limit - max_tokens} tokens before {max_tokens} of a "
                f"reply, got {length}: fewer examples, or a smaller --detail"
            )
        inputs = {name: inputs[name].to(self.model.device) for name in ("input_ids", "attention_mask")}
        pad = self.tokenizer.pad_token_id if self.tokenizer.pad_token_id is not None else self.tokenizer.eos_token_id
        out = self.model.generate(**inputs, max_new_tokens=max_tokens, do_sample=False, pad_token_id=pad)
        return self.tokenizer.decode(out[0, length:], skip_special_tokens=True)

    def count(self, text: str) -> int:
        return len(self.tokenizer(text)["input_ids"])


class ServedModel:
    """A model of a server that speaks OpenAI's chat completions: vLLM, llama.cpp, `transformers serve`, hosted ones.
    Requests that fail in passing (timeouts, 429, 5xx) are repeated `retries` times, each time after twice as long. The
    key is read from OPENAI_API_KEY where there is none."""

    def __init__(
        self, name: str, base_url: str, api_key: str | None = None, timeout: float = 60.0, retries: int = 4
    ) -> None:
        try:
            import openai
        except ImportError:
            wanted = "expected the package openai; pip install semantic-pyramid[incontext]"
            raise ValueError(f"ServedModel: {wanted}") from None
        self._name, self.model, self._openai = f"{name} at {base_url}", name, openai
        key = api_key or os.environ.get("OPENAI_API_KEY") or "none"
        self.client = openai.OpenAI(base_url=base_url, api_key=key, timeout=timeout, max_retries=retries)

    @property
    def name(self) -> str:
        return self._name

    @property
    def version(self) -> str:
        return ""

    def complete(self, prompt: str, max_tokens: int) -> str:
        """Raises OSError for a server that does not answer, or not with a reply: what was asked of whom, what came."""
        try:
            reply = self.client.chat.completions.create(
                model=self.model,
                messages=[{"role": "user", "content": prompt}],
                max_tokens=max_tokens,
                temperature=0.0,
            )
        except (self._openai.OpenAIError, ValueError) as error:  # ValueError: a body that is no JSON
            told = " ".join(f"{error} {getattr(error, 'body', None) or ''}".split())[:200]
            raise OSError(f"{self._name}: expected a reply, got {type(error).__name__}: {told}") from None
        choices = getattr(reply, "choices", None) or [None]
        return getattr(getattr(choices[0], "message", None), "content", None) or ""

    def count(self, text: str) -> int:
        return -(-len(text) // 4)  # about, of English


@dataclass
class Kept:
    """A model whose replies are kept in `folder`, a file a request, but for empty ones; a file that is damaged is asked
    for again. `asked`: how many went to the model itself."""

    model: LanguageModel
    folder: Path
    asked: int = 0

    @property
    def name(self) -> str:
        return self.model.name

    @property
    def version(self) -> str:
        return self.model.version

    def complete(self, prompt: str, max_tokens: int) -> str:
        request = {"model": self.name, "version": self.version, "prompt": prompt, "max_tokens": max_tokens}
        digest = hashlib.sha256(json.dumps(request, sort_keys=True).encode()).hexdigest()
        file = self.folder / digest[:2] / f"{digest}.json"
        with suppress(OSError, ValueError, KeyError, TypeError):
            if isinstance(reply := json.loads(file.read_text(encoding="utf8"))["reply"], str):
                return reply
        reply = self.model.complete(prompt, max_tokens)
        self.asked += 1
        if not reply.strip():
            return reply
        file.parent.mkdir(parents=True, exist_ok=True)
        with replacing(file) as part:
            part.write_text(json.dumps(request | {"reply": reply}, ensure_ascii=False) + "\n", encoding="utf8")
        return reply

    def count(self, text: str) -> int:
        return self.model.count(text)


@dataclass(frozen=True)
class Estimate:
    """What some requests would cost: tokens in and out, and money by prices a million tokens."""

    requests: int
    tokens_in: int
    tokens_out: int
    cost: float

    @staticmethod
    def of(model: LanguageModel, prompts: list[tuple[str, int]], price_in: float, price_out: float) -> Estimate:
        """`prompts`: each with the tokens of its reply at most."""
        tokens_in = sum(model.count(prompt) for prompt, _ in prompts)
        tokens_out = sum(most for _, most in prompts)
        cost = (tokens_in * price_in + tokens_out * price_out) / 1e6
        return Estimate(len(prompts), tokens_in, tokens_out, cost)

    def __str__(self) -> str:
        text = f"{self.requests} requests, some {self.tokens_in} tokens in and at most {self.tokens_out} out"
        return text + (f", at most {self.cost:.4f} at these prices" if self.cost else "")
