"""Processes that start with the libraries imported, so that a test of processes does not wait for imports."""

import multiprocessing

SERVER = multiprocessing.get_context("forkserver")
PRELOADED = ["pytest", "v2edit.jobs.functions", "v2edit.batch.worker", "v2edit.backbones.cogvideox",
             "v2edit.editing.editor", "v2edit.scenes.rer", "v2edit.scenes.reading", "v2edit.scenes.formats.nerfstudio",
             "v2edit.video.sheets", "av", "PIL.Image", "diffusers.pipelines.cogvideo.pipeline_cogvideox",
             "transformers.models.t5.modeling_t5"]  # fmt: skip
SERVER.set_forkserver_preload(PRELOADED)
