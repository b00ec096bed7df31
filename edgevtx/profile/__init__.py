"""How long each step from a frame to its result takes on this machine."""

from edgevtx.profile.latency import METHOD as METHOD
from edgevtx.profile.latency import Profile as Profile
from edgevtx.profile.latency import StageTimes as StageTimes
from edgevtx.profile.latency import profile as profile
from edgevtx.profile.synthetic import synthetic_frames as synthetic_frames
