"""Errors of the Hub's client: which there are, and each in one line without a token."""

from __future__ import annotations


def network_errors() -> tuple[type[Exception], ...]:
    """Return what is raised without a network: the bases of HfHubHTTPError are the HTTP client's error and OSError."""
    from huggingface_hub.errors import HfHubHTTPError

    return tuple(base for base in HfHubHTTPError.__bases__ if issubclass(base, Exception))


def hub_reason(error: Exception, token: str | None) -> str:
    """Return an error in one line, without the token or the one of this machine.

    >>> hub_reason(ValueError("Illegal header hf_abc\\n(retried)"), "hf_abc")
    'Illegal header <HUB_TOKEN>'
    """
    from huggingface_hub import get_token

    status = getattr(getattr(error, "response", None), "status_code", None)
    message = (getattr(error, "server_message", None) or "").strip()
    text = f"status {status}{f', {message}' if message else ''}" if status else str(error).strip()
    text = text.partition("\n")[0] or type(error).__name__
    for secret in filter(None, (token, get_token())):
        text = text.replace(secret, "<HUB_TOKEN>")
    return text
