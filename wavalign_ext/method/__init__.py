"""The method as functions on tensors and lists: no verl, no Ray, no vLLM. docs/method.md has its equations."""
