"""The run room: a run's directory and everything recorded in it; knows no engine and never imports torch.

`atomic` writes files whole or not at all; `directory` creates, locks and finds runs; `log`, `status`, `results`,
`manifest`, `record` and `tensorboard` each write one part of the record.
"""
