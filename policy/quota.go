package policy

import (
	"fmt"
	"math"
	"strings"

	"github.com/docker/docker/api/types/container"
)

// Accounting says what of a user's memory counts against the limit of all of their
// containers.
type Accounting uint8

// The ways to account for memory.
const (
	// AccountUsage counts what the user's slice uses, and what containers may still take
	// that were made or started so lately that their use says nothing yet.
	AccountUsage Accounting = iota
	// AccountCommitted counts the limits of all containers that run or may start by
	// themselves.
	AccountCommitted
)

// String returns the way as it is written in the configuration.
func (a Accounting) String() string {
	if a == AccountCommitted {
		return "committed"
	}
	return "usage"
}

// A Standing is what a user has of something that is limited, in bytes for memory.
type Standing struct {
	// Used is what counts of the slice's memory, Current the kernel's plain figure and
	// Cache the part of it that is page cache not used lately.
	Used, Current, Cache int64
	// Pending is what was promised to containers that do not use it yet, Committed the
	// sum of all promises.
	Pending, Committed int64
	// PIDs are processes and threads.
	PIDs int64
	// Containers and Running are numbers of containers, Arriving of those being made, and
	// Starting of those being started that do not run yet.
	Containers, Running, Arriving, Starting int
	// GPUs are held, by whom says Holders.
	GPUs    float64
	Holders []string
}

// A Gate is what a request is held against.
type Gate struct {
	Limits     *Limits
	Accounting Accounting
	// CountRunning leaves stopped containers out of the number of containers.
	CountRunning bool
}

// Sum adds what is not negative, and stops at the largest number.
func Sum(a, b int64) int64 {
	if a > math.MaxInt64-b {
		return math.MaxInt64
	}
	return a + b
}

// Memory decides whether a user may have requested bytes more, 0 for a container that has
// no limit of its own.
func (g Gate) Memory(s Standing, requested int64) Verdict {
	const rule = "memory-quota"
	a := g.Limits.Aggregate
	if a == nil || a.MemoryMax == nil {
		return allow(rule)
	}
	limit := *a.MemoryMax
	counted := Sum(s.Used, s.Pending)
	what := fmt.Sprintf("Current usage: %s (with page cache %s)", Bytes(s.Used), Bytes(s.Current))
	if s.Pending > 0 {
		what += fmt.Sprintf(", promised to containers that were just made or started: %s", Bytes(s.Pending))
	}
	if g.Accounting == AccountCommitted {
		if requested == 0 {
			return refuse(rule, fmt.Sprintf("Memory quota: every container must say how much memory it may take here. Add --memory, such as --memory 4g; your limit is %s for all of your containers (rule %s).", Bytes(limit), rule))
		}
		counted = s.Committed
		what = fmt.Sprintf("Promised to your containers: %s (used now: %s)", Bytes(s.Committed), Bytes(s.Used))
	}
	if requested <= limit && counted <= limit-requested && (requested > 0 || counted < limit) {
		return allow(rule)
	}
	return refuse(rule, strings.Join([]string{
		"Memory quota exceeded (rule " + rule + ").",
		"  " + what,
		"  Requested: " + Bytes(requested),
		"  Limit: " + Bytes(limit),
		"To free quota: see what runs with docker ps, stop what you do not need with docker stop <container>, and remove what never started, or would start again by itself, with docker rm. check-limits shows your limits.",
	}, "\n"))
}

// Unpause decides whether a container may go on, whose memory the user has already.
func (g Gate) Unpause(s Standing) Verdict {
	const rule = "memory-quota"
	if a := g.Limits.Aggregate; a != nil && a.MemoryMax != nil && s.Used > *a.MemoryMax {
		return refuse(rule, fmt.Sprintf("Memory quota exceeded (rule %s): you use %s, and your limit is %s. Stop what you do not need with docker stop <container> first.", rule, Bytes(s.Used), Bytes(*a.MemoryMax)))
	}
	return allow(rule)
}

// Containers decides whether a user may have one more container.
func (g Gate) Containers(s Standing) Verdict {
	const rule = "container-quota"
	have, coming, which, free := s.Containers, s.Arriving, "containers", "Remove one that you do not need with docker rm; docker ps -a lists them, stopped ones too."
	if g.CountRunning {
		have, coming, which, free = s.Running, s.Arriving+s.Starting, "running containers", "Stop one that you do not need with docker stop; docker ps lists them."
	}
	if most := g.Limits.MaxContainers; most != nil && have+coming >= *most {
		text := fmt.Sprintf("Container quota exceeded (rule %s): you have %d %s", rule, have, which)
		if coming > 0 {
			text += fmt.Sprintf(" and %d are being made or started", coming)
		}
		return refuse(rule, fmt.Sprintf("%s, and your limit is %d. %s", text, *most, free))
	}
	return allow(rule)
}

// Restarts reports whether the Engine may start a container with this policy by itself.
func Restarts(p container.RestartPolicy) bool { return p.Name != "" && p.Name != "no" }

// MayRestart reports whether the Engine may start a container by itself that has this
// policy: one that ended stays so under unless-stopped, since only its user ends it for
// good, and under on-failure where it did not fail. A start that failed last, as the
// Engine's error tells, takes back that its user ended it.
func MayRestart(p container.RestartPolicy, ended bool, exitCode int, lastError string) bool {
	if ended && lastError == "" && (p.Name == "unless-stopped" || p.Name == "on-failure" && exitCode == 0) {
		return false
	}
	return Restarts(p)
}

// pidsNear is the share of a user's processes from which they are warned.
const pidsNear = 0.9

// PIDsWarning is what the maker of a container reads who is near the limit of processes;
// "" where nobody is. The kernel holds the limit itself.
func (g Gate) PIDsWarning(s Standing) string {
	a := g.Limits.Aggregate
	if a == nil || a.TasksMax == nil || float64(s.PIDs) < pidsNear*float64(*a.TasksMax) {
		return ""
	}
	return fmt.Sprintf("You have %d of %d processes and threads; above that, programs cannot start new ones.", s.PIDs, *a.TasksMax)
}

// GPUs decides whether a user may hold the GPUs that a container asks for.
func (g Gate) GPUs(s Standing, asked GPUAsk) Verdict {
	const rule = "gpu-quota"
	slots := g.Limits.MaxGPUSlots
	var total *float64
	if a := g.Limits.Aggregate; a != nil {
		total = a.GPUs
	}
	switch {
	case !asked.Any():
		return allow(rule)
	case asked.All && (slots != nil || total != nil || g.Limits.MaxGPUs != nil):
		most := "your limits"
		if slots != nil {
			most = fmt.Sprintf("%d for one container", *slots)
		}
		return refuse(rule, fmt.Sprintf("GPU quota: %s asks for all GPUs, and you may have %s (rule %s). Ask for a number: --gpus 1.", asked.Field, most, rule))
	case g.Limits.MaxGPUs != nil && float64(asked.Count) > *g.Limits.MaxGPUs:
		return refuse(rule, fmt.Sprintf("GPU quota: %s asks for %d GPUs, and you may have %g in one container (rule %s).", asked.Field, asked.Count, *g.Limits.MaxGPUs, rule))
	case slots != nil && asked.Count > *slots:
		return refuse(rule, fmt.Sprintf("GPU quota: %s asks for %d GPUs, and %d is the most for one container (rule %s).", asked.Field, asked.Count, *slots, rule))
	case total != nil && s.GPUs+float64(asked.Count) > *total:
		held := "you hold none"
		if len(s.Holders) > 0 {
			held = "held: " + strings.Join(s.Holders, ", ")
		}
		return refuse(rule, fmt.Sprintf("GPU quota exceeded: %s asks for %d, and your limit for all containers is %g (%s; rule %s). Remove a container that holds GPUs with docker rm -f.", asked.Field, asked.Count, *total, held, rule))
	}
	return allow(rule)
}

// UnreadableUsage decides where nobody can tell what a user's slice uses.
func UnreadableUsage(err error, sw Switch) Verdict {
	if sw == SwitchAllow {
		return failOpen("cgroup-unreadable", err.Error())
	}
	return refuse("cgroup-unreadable", fmt.Sprintf("Permission denied: what you use of this machine cannot be read, so nothing can be promised (rule cgroup-unreadable). Tell the admin: %v.", err))
}

// UnlimitedSlice decides where a user's slice cannot be given its limits.
func UnlimitedSlice(err error, sw Switch) Verdict {
	if sw == SwitchAllow {
		return failOpen("slice-limits", err.Error())
	}
	return refuse("slice-limits", fmt.Sprintf("Permission denied: your part of this machine cannot be given its limits (rule slice-limits). Tell the admin: %v.", err))
}
