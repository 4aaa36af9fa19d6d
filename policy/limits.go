package policy

// Limits are what one user may take of the machine. A nil field is no limit.
type Limits struct {
	PerContainer ContainerLimits
	// MaxContainers is how many containers a user may have, and MaxGPUSlots how many
	// GPUs, or parts of one, a container may be given; MaxGPUs is how many GPUs' worth
	// these may be together. 0 of the latter two is no GPU.
	MaxContainers *int
	MaxGPUSlots   *int
	MaxGPUs       *float64
	// Aggregate is for all of the user's containers together; nil where nothing is.
	Aggregate *Aggregate
}

// ForOne are the limits of one container. Where there is one for CPUs, it is not above
// what all of the user's containers have: version 1 of cgroups starts none that has more.
func (l *Limits) ForOne() ContainerLimits {
	one := l.PerContainer
	if a := l.Aggregate; one.NanoCPUs != nil && a != nil && a.CPUQuota != nil {
		one.NanoCPUs = ptr(min(*one.NanoCPUs, *a.CPUQuota*nanoPercent))
	}
	return one
}

// nanoPercent is a hundredth of a CPU in billionths.
const nanoPercent = 10_000_000

// ContainerLimits are for one container: what it gets where it asks for nothing, and
// the most it may ask for.
type ContainerLimits struct {
	// Memory, MemorySwap (memory and swap together, as for docker run --memory-swap) and
	// ShmSize are bytes.
	Memory, MemorySwap, ShmSize *int64
	// NanoCPUs are billionths of a CPU.
	NanoCPUs *int64
	// PIDs is a number of processes and threads.
	PIDs *int64
}

// An Aggregate holds for a user's slice.
type Aggregate struct {
	// CPUQuota is a percentage of one CPU: 200 is two.
	CPUQuota *int64
	// MemoryMax and MemoryHigh are bytes; above the first the kernel ends processes,
	// above the second it slows them down.
	MemoryMax, MemoryHigh *int64
	// TasksMax is a number of processes and threads.
	TasksMax *int64
	// GPUs is how many GPUs' worth a user may hold; parts of one count as such, and 0 is
	// none.
	GPUs *float64
}
