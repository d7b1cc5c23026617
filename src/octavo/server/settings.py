"""How a server is to be run: where it listens, who may come in, and how much one call may ask for."""

import ipaddress
from dataclasses import dataclass

from octavo.errors import UsageError


@dataclass(frozen=True)
class CallLimits:
    """Bounds of one call. A body is read for at most `body_seconds`, a reply written for `reply_seconds`.

    A stream that is silent for `ping_seconds` sends a comment, and one whose reader takes nothing for
    `stalled_seconds` is given up.
    """

    body_bytes: int = 2 * 2**20
    body_seconds: float = 30.0
    reply_seconds: float = 1800.0
    ping_seconds: float = 15.0
    stalled_seconds: float = 60.0


@dataclass(frozen=True)
class ServerSettings:
    """`api_keys` may do everything but load and unload models, which `admin_keys` may as well.

    `host_names` are names, beside localhost, under which browsers may reach the server. UsageError for an address
    that is not this machine's own without a key: nobody else may come in unasked.
    """

    host: str = "127.0.0.1"
    port: int = 8080
    api_keys: tuple[str, ...] = ()
    admin_keys: tuple[str, ...] = ()
    host_names: tuple[str, ...] = ()
    limits: CallLimits = CallLimits()

    def __post_init__(self) -> None:
        if not is_loopback(self.host) and not (self.api_keys or self.admin_keys):
            raise UsageError(
                f"{self.host} can be reached from other machines; give an --api-key, or keep to 127.0.0.1"
            )
        if not 0 <= self.port <= 65535:
            raise UsageError(f"port {self.port} is not in 0 … 65535; 0 takes any that is free")
        if any(
            not key or not key.isascii() or not key.isprintable() for key in (*self.api_keys, *self.admin_keys)
        ):
            raise UsageError("an API key is empty or holds what no HTTP header can; use printable ASCII")


def is_loopback(host: str) -> bool:
    """Whether only this machine itself reaches an address; a name other than localhost could be anybody's."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
