package policy

import (
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"

	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/api/types/mount"
)

// A Host is what the rules about limits must know of the machine.
type Host struct {
	// CPUs is how many the Engine sees: it refuses a container that asks for more.
	CPUs int
	// DefaultRuntime is the Engine's.
	DefaultRuntime string
}

// cpuPeriod is the Engine's period for --cpu-quota where none is given, in µs.
const cpuPeriod = 100_000

// leastCPUs is the least share of a CPU that the kernel keeps, in billionths. The Engine
// rounds a smaller one down in µs of its period, and 0 of these are no limit.
const leastCPUs = 10_000_000

// ceiling is the refusal of what is over a limit for one container.
func ceiling(field, asked, most string) Verdict {
	return refuse("container-limits", fmt.Sprintf("Permission denied: %s %s is over your limit for one container, %s (rule container-limits). Ask for %s or less, or leave it out to get that.", field, asked, most, most))
}

// unlimited is the refusal of a value that means no limit.
func unlimited(field, asked, most string) Verdict {
	return refuse("container-limits", fmt.Sprintf("Permission denied: %s %s means no limit, and your limit for one container is %s (rule container-limits). Ask for %s or less, or leave it out to get that.", field, asked, most, most))
}

// ContainerCeilings gives a container what its user's limits say where the request says
// nothing, and refuses what is over them.
func ContainerCeilings(l *ContainerLimits, host Host, req *container.CreateRequest) Verdict {
	if req.HostConfig == nil {
		req.HostConfig = &container.HostConfig{}
	}
	hc := req.HostConfig
	if v := resourceCeilings(l, host, &hc.Resources, true); !v.Allowed() {
		return v
	}
	if l.ShmSize != nil {
		switch {
		case hc.ShmSize < 0 || hc.ShmSize > *l.ShmSize:
			return ceiling("--shm-size", Bytes(hc.ShmSize), Bytes(*l.ShmSize))
		case hc.ShmSize == 0:
			hc.ShmSize = *l.ShmSize
		}
	}
	return tmpfsCeilings(l, hc)
}

// UpdateCeilings refuses changes that are over a user's limits; what stays unset stays
// what it was.
func UpdateCeilings(l *ContainerLimits, host Host, u *container.UpdateConfig) Verdict {
	return resourceCeilings(l, host, &u.Resources, false)
}

// resourceCeilings holds what containers and updates have in common against the limits,
// and fills in what is not set where fill is true.
func resourceCeilings(l *ContainerLimits, host Host, r *container.Resources, fill bool) Verdict {
	if v := memoryCeilings(l, r, fill); !v.Allowed() {
		return v
	}
	if v := cpuCeilings(l, host, r, fill); !v.Allowed() {
		return v
	}
	if l.PIDs != nil {
		switch asked := r.PidsLimit; {
		case asked == nil, *asked == 0:
			// In an update, 0 would be no limit; without it, what there is stays.
			r.PidsLimit = nil
			if fill {
				r.PidsLimit = ptr(*l.PIDs)
			}
		case *asked < 0:
			return unlimited("--pids-limit", strconv.FormatInt(*asked, 10), strconv.FormatInt(*l.PIDs, 10))
		case *asked > *l.PIDs:
			return ceiling("--pids-limit", strconv.FormatInt(*asked, 10), strconv.FormatInt(*l.PIDs, 10))
		}
	}
	return allow("container-limits")
}

func ptr[T any](v T) *T { return &v }

// memory is the most that one container may take, nil for no limit: memory with swap is
// no less than memory.
func (l *ContainerLimits) memory() *int64 {
	if l.Memory == nil || l.MemorySwap != nil && *l.MemorySwap < *l.Memory {
		return l.MemorySwap
	}
	return l.Memory
}

func memoryCeilings(l *ContainerLimits, r *container.Resources, fill bool) Verdict {
	most := l.memory()
	if most != nil {
		switch {
		case r.Memory < 0:
			return unlimited("--memory", strconv.FormatInt(r.Memory, 10), Bytes(*most))
		case r.Memory > *most:
			return ceiling("--memory", Bytes(r.Memory), Bytes(*most))
		case r.Memory == 0 && fill:
			r.Memory = *most
		}
	}
	if l.MemorySwap == nil {
		return allow("container-limits")
	}
	switch {
	case r.MemorySwap < 0:
		return unlimited("--memory-swap", strconv.FormatInt(r.MemorySwap, 10), Bytes(*l.MemorySwap))
	case r.MemorySwap > *l.MemorySwap:
		return ceiling("--memory-swap", Bytes(r.MemorySwap), Bytes(*l.MemorySwap))
	case r.MemorySwap == 0 && r.Memory > 0:
		// The Engine would give it as much swap again. It gets as much as the limits
		// leave beside their memory.
		r.MemorySwap = r.Memory + *l.MemorySwap - *most
	}
	return allow("container-limits")
}

func cpuCeilings(l *ContainerLimits, host Host, r *container.Resources, fill bool) Verdict {
	if l.NanoCPUs == nil {
		return allow("container-limits")
	}
	most := *l.NanoCPUs
	if host.CPUs > 0 {
		most = min(most, int64(host.CPUs)*1e9)
	}
	quota := r.CPUQuota
	period := r.CPUPeriod
	if period <= 0 {
		period = cpuPeriod
	}
	switch {
	case r.NanoCPUs < 0:
		return unlimited("--cpus", cpus(r.NanoCPUs), cpus(most))
	case r.NanoCPUs > *l.NanoCPUs:
		return ceiling("--cpus", cpus(r.NanoCPUs), cpus(most))
	case r.NanoCPUs > 0 && r.NanoCPUs < leastCPUs:
		return refuse("container-limits", fmt.Sprintf("Permission denied: --cpus %s is too little (rule container-limits). Ask for %s or more.", cpus(r.NanoCPUs), cpus(leastCPUs)))
	case quota < 0:
		return unlimited("--cpu-quota", strconv.FormatInt(quota, 10), cpus(most)+" CPUs")
	case quota > 0 && float64(quota)/float64(period) > float64(*l.NanoCPUs)/1e9:
		return ceiling("--cpu-quota", fmt.Sprintf("%d (%.4g CPUs)", quota, float64(quota)/float64(period)), cpus(most)+" CPUs")
	case !fill && r.CPUPeriod > 0 && quota == 0:
		// The quota that the container has would be another share of a CPU.
		return refuse("container-limits", "Permission denied: --cpu-period without --cpu-quota changes how many CPUs the container has (rule container-limits). Give both, or --cpus.")
	case !fill && r.CPUPeriod == 0 && quota > 0:
		// Of the period that the container has it would be another share.
		r.CPUPeriod = cpuPeriod
	case !fill, r.NanoCPUs > 0, quota > 0:
	case r.CPUPeriod > 0:
		r.CPUQuota = int64(float64(period) * float64(most) / 1e9)
	default:
		r.NanoCPUs = most
	}
	return allow("container-limits")
}

// cpus words billionths of a CPU.
func cpus(nano int64) string { return strconv.FormatFloat(float64(nano)/1e9, 'f', -1, 64) }

// tmpfsMost is how much a file system in memory may hold at a target: memory pays for it,
// and what stands at /dev/shm takes the place of shared memory.
func tmpfsMost(l *ContainerLimits, hc *container.HostConfig, target string) (most int64, limited bool) {
	most = math.MaxInt64
	if memory := l.memory(); memory != nil {
		if most = *memory; hc.Memory > 0 {
			most = min(most, hc.Memory)
		}
	}
	if l.ShmSize != nil && cleanTarget(target) == "/dev/shm" {
		most = min(most, *l.ShmSize)
	}
	return most, most < math.MaxInt64
}

// tmpfsCeilings holds file systems in memory against the limits; those without a size
// get it.
func tmpfsCeilings(l *ContainerLimits, hc *container.HostConfig) Verdict {
	for _, target := range sortedKeys(hc.Tmpfs) {
		most, limited := tmpfsMost(l, hc, target)
		if !limited {
			continue
		}
		options := strings.Split(hc.Tmpfs[target], ",")
		has := false
		for i, o := range options {
			key, value, _ := strings.Cut(o, "=")
			switch key {
			case "size":
				has = true
				size, err := tmpfsSize(value, most)
				if err != nil {
					return refuse("container-limits", fmt.Sprintf("Permission denied: --tmpfs %s: the size %q cannot be read (rule container-limits). Use bytes, or a number with k, m or g.", target, value))
				}
				if size > most || size <= 0 {
					return ceiling("--tmpfs "+target+" with size", value, Bytes(most))
				}
				options[i] = "size=" + strconv.FormatInt(size, 10)
			case "nr_blocks", "huge":
				return refuse("container-limits", fmt.Sprintf("Permission denied: --tmpfs %s: %s is not allowed here (rule container-limits). Use size.", target, key))
			}
		}
		if !has {
			options = append(slices.DeleteFunc(options, func(o string) bool { return o == "" }), "size="+strconv.FormatInt(most, 10))
		}
		hc.Tmpfs[target] = strings.Join(options, ",")
	}
	for i := range hc.Mounts {
		m := &hc.Mounts[i]
		if m.Type != mount.TypeTmpfs {
			continue
		}
		most, limited := tmpfsMost(l, hc, m.Target)
		if !limited {
			continue
		}
		options := mount.TmpfsOptions{}
		if m.TmpfsOptions != nil {
			options = *m.TmpfsOptions
		}
		for _, o := range options.Options {
			// They are joined to the size by commas, and the last size would count.
			if text := strings.Join(o, "="); strings.Contains(text, ",") || slices.Contains([]string{"size", "nr_blocks", "huge"}, strings.SplitN(text, "=", 2)[0]) {
				return refuse("container-limits", fmt.Sprintf("Permission denied: --mount type=tmpfs,target=%s with the option %q is not allowed here (rule container-limits). Use tmpfs-size.", m.Target, text))
			}
		}
		switch {
		case options.SizeBytes < 0 || options.SizeBytes > most:
			return ceiling("--mount type=tmpfs,target="+m.Target+" with tmpfs-size", Bytes(options.SizeBytes), Bytes(most))
		case options.SizeBytes == 0:
			options.SizeBytes = most
		}
		m.TmpfsOptions = &options
	}
	return allow("container-limits")
}

// tmpfsSize reads a size as the kernel does: bytes, k, m, g, t or a percentage, here of
// the most that there may be.
func tmpfsSize(s string, most int64) (int64, error) {
	if percent, ok := strings.CutSuffix(s, "%"); ok {
		n, err := strconv.ParseUint(percent, 10, 7)
		if err != nil || n > 100 {
			return 0, fmt.Errorf("%q is no percentage", s)
		}
		return most / 100 * int64(n), nil
	}
	shift := 0
	if s != "" {
		if i := strings.IndexByte("kmgt", s[len(s)-1]|0x20); i >= 0 {
			shift, s = 10*(i+1), s[:len(s)-1]
		}
	}
	n, err := strconv.ParseUint(s, 10, 63-shift)
	return int64(n) << shift, err
}

// Bytes words a number of bytes as resource limits are written: 32g, 512m; what is no
// whole number of the larger unit keeps one digit of it.
func Bytes(n int64) string {
	units := []struct {
		size int64
		name string
	}{{1 << 40, "t"}, {1 << 30, "g"}, {1 << 20, "m"}, {1 << 10, "k"}}
	for _, u := range units {
		if n >= u.size || n <= -u.size {
			return strings.TrimSuffix(strconv.FormatFloat(float64(n)/float64(u.size), 'f', 1, 64), ".0") + u.name
		}
	}
	return strconv.FormatInt(n, 10)
}
