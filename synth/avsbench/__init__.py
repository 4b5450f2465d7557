"""Reading AVSBench in its own layouts: the real one, or a miniature of it.

AVSBench-object, its single-source (s4) and multi-source (ms3) subsets::

    Single-source/s4_meta_data.csv                                    name,start,category,split
    Single-source/s4_data/visual_frames/{split}/{category}/{name}/{name}_{1..5}.png
    Single-source/s4_data/gt_masks/{split}/{category}/{name}/{name}_{1..5}.png   train: only _1
    Single-source/s4_data/audio_wav/{split}/{category}/{name}.wav
    Single-source/s4_data/raw_videos/{split}/{category}/{name}.mp4
    Multi-sources/ms3_meta_data.csv                                   video_id,split
    Multi-sources/ms3_data/visual_frames/{name}/{name}.mp4_{1..5}.png   no split level
    Multi-sources/ms3_data/gt_masks/{split}/{name}/{name}_{1..5}.png
    Multi-sources/ms3_data/audio_wav/{split}/{name}.wav
    Multi-sources/ms3_data/raw_videos/{name}.mp4                        no split level

AVSBench-semantic (v1s and v1m, the clips of s4 and ms3 labelled anew, and v2; avss is all three)::

    metadata.csv                            vid,uid,s_min,s_sec,a_obj,split,label
    label2idx.json                          the 71 classes
    {v1s|v1m|v2}/{uid}/frames/{0..}.jpg     5 frames, 10 in v2
    {v1s|v1m|v2}/{uid}/labels_rgb/{0..}.png v1s train: only 0
    {v1s|v1m|v2}/{uid}/audio.wav

(https://github.com/OpenNLPLab/AVSBench, avs_scripts/*/config.py and the data loaders beside it.)
Each may lie in a folder, in zip files in that folder, or in one zip file; on disk or on S3. Frames
and masks pass through unchanged. Frames or the sound that a clip of AVSBench-object lacks are taken
from its raw video; what else is missing has the clip refused by name. Pickled log-mels
(``audio_log_mel``) are never read.
"""

from synth.avsbench.checking import look, pickles_note, summarise
from synth.avsbench.reading import read_clips, to_sample
from synth.avsbench.rows import ClipRow, clip_key, clips, plan_shards, rows_of
from synth.avsbench.splits import Splits, note_on
from synth.avsbench.table import SPLITS, SUBSETS
from synth.avsbench.tree import PICKLED, Layout, find, table_of

__all__ = [
    "PICKLED",
    "SPLITS",
    "SUBSETS",
    "ClipRow",
    "Layout",
    "Splits",
    "clip_key",
    "clips",
    "find",
    "look",
    "note_on",
    "pickles_note",
    "plan_shards",
    "read_clips",
    "rows_of",
    "summarise",
    "table_of",
    "to_sample",
]
