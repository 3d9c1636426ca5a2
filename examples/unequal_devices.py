"""Plan which device runs which slice, where one device is four times as fast as the others.

    python examples/unequal_devices.py

Measures the model on this machine; `speed` is a factor on that. The planner weighs computing against what crosses the
links, and leaves devices out that would only slow the pipeline down.
"""

from pathlib import Path

import har_edge
from har_edge.planner.devices import DeviceEntry, DevicesFile, make_devices
from har_edge.planner.plan import Objective, make_plan, make_planning_problem
from har_edge.runtime.profiling import make_profile, time_model

model = har_edge.load_model("float").graph
profile = make_profile(model, "here", time_model(model, repeats=5))
link = {"link_bytes_per_s": 94e6 / 8, "latency_s": 0.0002, "message_s": 0.0001}
file = DevicesFile(
    [
        DeviceEntry("pi-5", speed=0.2, **link),
        DeviceEntry("pi-zero", count=2, speed=0.05, **link),
    ]
)
devices, _ = make_devices(file, Path(), profile)
for objective in Objective:
    plan = make_plan(make_planning_problem(model, profile.bounds, devices, replicas=2, sensors=file.sensors), objective)
    print(f"{objective.value}: {1 / plan.bottleneck_s:.0f} windows a second, {plan.latency_s * 1000:.2f} ms a window")
    for stage in plan.stages:
        print(f"    operators [{stage.start}, {stage.stop}) on {', '.join(stage.devices)}")
