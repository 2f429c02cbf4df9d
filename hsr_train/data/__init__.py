"""The data room: a YOLO set is checked in full before anything heavy starts.

`yolo` is the door: `load_detection_set` reads a data.yaml (`description`), finds images and labels (`listing`), reads
every file or trusts what is known of it (`files`, `images`, `labels`, `cache`), and hands out a `DetectionSet`
(`detection_set`) or one report of everything that is wrong (`report`). Imports neither torch nor ultralytics.
"""
