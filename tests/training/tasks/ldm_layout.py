"""Latent diffusion in the layout of the LDM code, in plain torch, as an oracle for conversion.

Weights are made when a layer first asks for them, so that running the networks once fills a state dict of any sizes.
"""

import math
import zlib

import numpy as np
import torch
from torch.nn import functional

AE, UNET = "first_stage_model", "model.diffusion_model"


class Ldm:
    def __init__(self, sizes):
        self.sizes, self.state = sizes, {}

    def filled(self):
        """The state dict of both networks."""
        latents = torch.zeros(1, self.sizes["latents"], 8, 8)
        self.encode(torch.zeros(1, self.sizes["bands"], 32, 32))
        self.decode(latents)
        self.denoise(latents, latents, torch.tensor([0]))
        return dict(self.state)

    def get(self, name, *shape):
        if name not in self.state:
            z = np.random.default_rng(zlib.crc32(name.encode())).standard_normal(shape)
            z = z / math.sqrt(math.prod(shape[1:])) if len(shape) > 1 else 0.05 * z + (name.endswith("norm.weight"))
            self.state[name] = torch.from_numpy(z).float()
        return self.state[name]

    def conv(self, name, x, out, kernel=3, stride=1, padding=None):
        weight = self.get(f"{name}.weight", out, x.shape[1], kernel, kernel)
        return functional.conv2d(
            x, weight, self.get(f"{name}.bias", out), stride, kernel // 2 if padding is None else 0
        )

    def linear(self, name, x, out):
        return functional.linear(x, self.get(f"{name}.weight", out, x.shape[-1]), self.get(f"{name}.bias", out))

    def norm(self, name, x, eps):
        return functional.group_norm(
            x, 32, self.get(f"{name}.weight", x.shape[1]), self.get(f"{name}.bias", x.shape[1]), eps
        )

    # --- autoencoder

    def encode(self, x):
        name, channels = f"{AE}.encoder", self.sizes["autoencoder_channels"]
        x = self.conv(f"{name}.conv_in", x, channels[0])
        for level, width in enumerate(channels):
            for block in range(self.sizes["autoencoder_blocks"]):
                x = self.block(f"{name}.down.{level}.block.{block}", x, width)
            if level < len(channels) - 1:
                padded = functional.pad(x, (0, 1, 0, 1))
                x = self.conv(f"{name}.down.{level}.downsample.conv", padded, width, stride=2, padding=0)
        x = self.end(name, self.middle(name, x), 2 * self.sizes["latents"])
        return self.conv(f"{AE}.quant_conv", x, x.shape[1], 1)

    def decode(self, z):
        name, channels = f"{AE}.decoder", self.sizes["autoencoder_channels"]
        x = self.conv(f"{AE}.post_quant_conv", z, z.shape[1], 1)
        x = self.middle(name, self.conv(f"{name}.conv_in", x, channels[-1]))
        for level in reversed(range(len(channels))):
            for block in range(self.sizes["autoencoder_blocks"] + 1):
                x = self.block(f"{name}.up.{level}.block.{block}", x, channels[level])
            if level:
                x = self.conv(f"{name}.up.{level}.upsample.conv", functional.interpolate(x, scale_factor=2), x.shape[1])
        return self.end(name, x, self.sizes["bands"])

    def block(self, name, x, width):
        h = self.conv(f"{name}.conv1", functional.silu(self.norm(f"{name}.norm1", x, 1e-6)), width)
        h = self.conv(f"{name}.conv2", functional.silu(self.norm(f"{name}.norm2", h, 1e-6)), width)
        return h + (x if x.shape[1] == width else self.conv(f"{name}.nin_shortcut", x, width, 1))

    def middle(self, name, x):
        x = self.block(f"{name}.mid.block_1", x, x.shape[1])
        h = self.norm(f"{name}.mid.attn_1.norm", x, 1e-6)
        q, k, v = (self.conv(f"{name}.mid.attn_1.{part}", h, x.shape[1], 1).flatten(2) for part in "qkv")
        h = (v @ (q.mT @ k / math.sqrt(x.shape[1])).softmax(-1).mT).reshape(x.shape)
        x = x + self.conv(f"{name}.mid.attn_1.proj_out", h, x.shape[1], 1)
        return self.block(f"{name}.mid.block_2", x, x.shape[1])

    def end(self, name, x, out):
        return self.conv(f"{name}.conv_out", functional.silu(self.norm(f"{name}.norm_out", x, 1e-6)), out)

    # --- denoiser

    def denoise(self, noisy, condition, timestep):
        sizes, x = self.sizes, torch.cat([noisy, condition], 1)
        half = sizes["channels"][0] // 2
        angles = timestep[:, None] * torch.exp(-math.log(10000) * torch.arange(half) / half)
        time = self.linear(f"{UNET}.time_embed.0", torch.cat([angles.cos(), angles.sin()], 1), 8 * half)
        time = self.linear(f"{UNET}.time_embed.2", functional.silu(time), 8 * half)
        x = self.conv(f"{UNET}.input_blocks.0.0", x, sizes["channels"][0])
        skips, entry = [x], 1
        for level, width in enumerate(sizes["channels"]):
            for _ in range(sizes["blocks"]):
                x = self.entry(f"{UNET}.input_blocks.{entry}", x, time, width, level)
                skips, entry = [*skips, x], entry + 1
            if level < len(sizes["channels"]) - 1:
                x = self.conv(f"{UNET}.input_blocks.{entry}.0.op", x, width, stride=2)
                skips, entry = [*skips, x], entry + 1
        x = self.residual(f"{UNET}.middle_block.0", x, time, width)
        x = self.residual(f"{UNET}.middle_block.2", self.attention(f"{UNET}.middle_block.1", x), time, width)
        entry = 0
        for level in reversed(range(len(sizes["channels"]))):
            for block in range(sizes["blocks"] + 1):
                x, width = torch.cat([x, skips.pop()], 1), sizes["channels"][level]
                x = self.entry(f"{UNET}.output_blocks.{entry}", x, time, width, level)
                if level and block == sizes["blocks"]:
                    at = 1 + (level in sizes["attention_levels"])
                    x = functional.interpolate(x, scale_factor=2)
                    x = self.conv(f"{UNET}.output_blocks.{entry}.{at}.conv", x, width)
                entry += 1
        return self.conv(f"{UNET}.out.2", functional.silu(self.norm(f"{UNET}.out.0", x, 1e-5)), sizes["latents"])

    def entry(self, name, x, time, width, level):
        x = self.residual(f"{name}.0", x, time, width)
        return self.attention(f"{name}.1", x) if level in self.sizes["attention_levels"] else x

    def residual(self, name, x, time, width):
        h = self.conv(f"{name}.in_layers.2", functional.silu(self.norm(f"{name}.in_layers.0", x, 1e-5)), width)
        h = h + self.linear(f"{name}.emb_layers.1", functional.silu(time), width)[:, :, None, None]
        h = self.conv(f"{name}.out_layers.3", functional.silu(self.norm(f"{name}.out_layers.0", h, 1e-5)), width)
        return h + (x if x.shape[1] == width else self.conv(f"{name}.skip_connection", x, width, 1))

    def attention(self, name, x):
        n, channels = x.shape[:2]
        h = self.norm(f"{name}.norm", x, 1e-5).flatten(2)
        qkv = self.get(f"{name}.qkv.weight", 3 * channels, channels, 1)
        qkv = functional.conv1d(h, qkv, self.get(f"{name}.qkv.bias", 3 * channels))
        q, k, v = qkv.reshape(n * channels // 32, 96, -1).chunk(3, 1)  # heads of 32, each with its three parts
        h = (v @ (q.mT @ k / math.sqrt(32)).softmax(-1).mT).reshape(n, channels, -1)
        out = self.get(f"{name}.proj_out.weight", channels, channels, 1)
        return x + functional.conv1d(h, out, self.get(f"{name}.proj_out.bias", channels)).reshape(x.shape)
