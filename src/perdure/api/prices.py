"""Prices of well-known models, as data: US dollars for a million tokens, in the lowest tier.

They were collected in November 2026 from the providers' public price lists. A server's own prices
come first (`Prices.with_overrides`); a model that is in neither is reported as unpriced.
"""

from __future__ import annotations

from collections.abc import Mapping

AS_OF = "2026-11-20"

# model -> input, output, cache read, cache write (None: a quarter more than input)
PRICES: Mapping[str, tuple[str, str, str | None, str | None]] = {
    "claude-fable-5": ("10", "50", "1", "12.5"),
    "claude-haiku-4-5": ("1", "5", "0.1", "1.25"),
    "claude-haiku-5-5": ("0.1", "0.5", "0.01", "0.125"),
    "claude-opus-4-1": ("15", "75", "1.5", "18.75"),
    "claude-opus-4-5": ("5", "25", "0.5", "6.25"),
    "claude-opus-4-6": ("5", "25", "0.5", "6.25"),
    "claude-opus-4-7": ("5", "25", "0.5", "6.25"),
    "claude-opus-4-8": ("5", "25", "0.5", "6.25"),
    "claude-opus-5": ("5", "25", "0.5", "6.25"),
    "claude-opus-5-5": ("4", "20", "0.2", "5"),
    "claude-sonnet-4-5": ("3", "15", "0.3", "3.75"),
    "claude-sonnet-4-6": ("3", "15", "0.3", "3.75"),
    "claude-sonnet-5": ("2", "10", "0.2", "2.5"),
    "claude-sonnet-5-5": ("2", "10", "0.1", "2.5"),
    "gemini-2.5-flash": ("0.3", "2.5", "0.03", None),
    "gemini-2.5-pro": ("1.25", "10", "0.125", None),
    "gemini-3.5-flash": ("1.5", "9", "0.15", None),
    "gemini-3.8-flash": ("1.5", "7.5", "0.15", None),
    "gpt-4.1": ("2", "8", "0.5", None),
    "gpt-4.1-mini": ("0.4", "1.6", "0.1", None),
    "gpt-4o": ("2.5", "10", "1.25", None),
    "gpt-4o-mini": ("0.15", "0.6", "0.075", None),
    "gpt-5": ("1.25", "10", "0.125", None),
    "gpt-5-mini": ("0.25", "2", "0.025", None),
    "gpt-5-nano": ("0.05", "0.4", "0.005", None),
    "gpt-5.1": ("1.25", "10", "0.125", None),
    "gpt-5.2": ("1.75", "14", "0.175", None),
    "gpt-5.4": ("2.5", "15", "0.25", None),
    "gpt-5.4-mini": ("0.75", "4.5", "0.075", None),
    "gpt-5.5": ("5", "30", "0.5", None),
    "o3": ("2", "8", "0.5", None),
    "o4-mini": ("1.1", "4.4", "0.275", None),
}

# How many tokens a reply of a model may have at most, as its provider documents it.
OUTPUT_TOKENS_MAX: Mapping[str, int] = {
    "claude-fable-5": 128_000,
    "claude-haiku-4-5": 64_000,
    "claude-haiku-5-5": 128_000,
    "claude-opus-4-1": 32_000,
    "claude-opus-4-5": 64_000,
    "claude-opus-4-6": 128_000,
    "claude-opus-4-7": 128_000,
    "claude-opus-4-8": 128_000,
    "claude-opus-5": 128_000,
    "claude-opus-5-5": 128_000,
    "claude-sonnet-4-5": 64_000,
    "claude-sonnet-4-6": 128_000,
    "claude-sonnet-5": 128_000,
    "claude-sonnet-5-5": 128_000,
    "gemini-2.5-flash": 65_536,
    "gemini-2.5-pro": 65_536,
    "gpt-4.1": 32_768,
    "gpt-4.1-mini": 32_768,
    "gpt-4o": 16_384,
    "gpt-4o-mini": 16_384,
    "gpt-5": 128_000,
    "gpt-5-mini": 128_000,
    "gpt-5-nano": 128_000,
    "gpt-5.1": 128_000,
    "gpt-5.2": 128_000,
    "o3": 100_000,
    "o4-mini": 100_000,
}
