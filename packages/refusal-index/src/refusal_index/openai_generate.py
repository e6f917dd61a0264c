"""Text generation over an OpenAI-compatible chat endpoint."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

from openai import APIError, OpenAI

from refusal_index.draws import Draws


class OpenAIGenerate:
    """A `generate(texts) -> responses` over `/v1/chat/completions`; each text is one user turn.

    Connection errors, time-outs and the statuses 408, 409, 429 and 5xx are retried with growing pauses.

    Args:
        model: the name the endpoint knows.
        base_url: such as `http://127.0.0.1:8000/v1`; None for OpenAI itself.
        api_key: None takes the environment variable OPENAI_API_KEY.
        max_tokens: of one response.
        temperature: 0 decodes greedily.
        top_p: mass of the nucleus.
        seed: sent with each request, derived from (seed, text, how often it was asked); endpoints may ignore it.
        concurrency: requests in flight at most.
        retries: of one request.
        timeout: seconds of one request.

    Raises:
        ValueError: for a concurrency below 1.
    """

    def __init__(
        self,
        model: str,
        *,
        base_url: str | None = None,
        api_key: str | None = None,
        max_tokens: int = 4096,
        temperature: float = 0.7,
        top_p: float = 0.95,
        seed: int = 0,
        concurrency: int = 8,
        retries: int = 5,
        timeout: float = 120.0,
    ) -> None:
        if concurrency < 1:
            raise ValueError(f"concurrency must be at least 1, got {concurrency}")
        self._client = OpenAI(base_url=base_url, api_key=api_key, max_retries=retries, timeout=timeout)
        self._model, self._max_tokens, self._concurrency = model, max_tokens, concurrency
        self._temperature, self._top_p = temperature, top_p
        self._draws = Draws(seed)

    def __call__(self, texts: list[str]) -> list[str]:
        """One response per text, in order.

        Raises:
            ConnectionError: in one line, when a request still fails after the retries.
        """
        pool = ThreadPoolExecutor(self._concurrency)
        try:
            return list(pool.map(self._ask, texts, self._draws.seeds(texts)))
        except APIError as error:
            raise ConnectionError(f"{self._client.base_url}: {error.message}") from None
        finally:
            pool.shutdown(cancel_futures=True)

    def close(self) -> None:
        """Closes the connections."""
        self._client.close()

    def _ask(self, text: str, seed: int) -> str:
        reply = self._client.chat.completions.create(
            model=self._model,
            messages=[{"role": "user", "content": text}],
            max_tokens=self._max_tokens,
            temperature=self._temperature,
            top_p=self._top_p,
            seed=seed,
        )
        return reply.choices[0].message.content or ""
