"""Shapes and weights: GPT-2 and Llama from flags, LoRA and quantization, llama2.c import and export."""
