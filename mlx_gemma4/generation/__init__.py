"""Token ids into token ids: prefill, sampling, the decoding loop, streamed text."""
