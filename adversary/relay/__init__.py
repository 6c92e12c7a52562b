"""The relay: a verbatim HTTP/2 splice between client and server, with the places where an addon may act."""

from adversary.relay.addon import Addon, Answerer, Forward, Listener, Order, foreign
from adversary.relay.server import Relay

__all__ = ["Addon", "Answerer", "Forward", "Listener", "Order", "Relay", "foreign"]
