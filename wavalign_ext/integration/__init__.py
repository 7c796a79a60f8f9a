"""Where WavAlign meets verl, vLLM and the hardware: registrations, patches, engines, the fused head."""
