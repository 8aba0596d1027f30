"""Models: transformer.py, to be read from embedding to logits in one sitting; layers/ one file per replaceable layer."""

from seedbed.core.registry import Registry

parts = Registry("models", {"decoder": "seedbed.models.decoder:Decoder"}, promises="seedbed.core.protocols:ModelKind")
