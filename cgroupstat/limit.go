package cgroupstat

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/ds01/ds01-proxy/policy"
)

// cpuPeriod is the kernel's usual period of CPU quotas, in microseconds; one percent of
// a CPU is a hundredth of it.
const cpuPeriod = 100_000

// mostPIDs is PID_MAX_LIMIT: no machine has more processes and threads, and pids.max takes
// no larger number.
const mostPIDs = 4 << 20

// Limiter makes slices and sets their limits where the Engine's cgroup driver is
// cgroupfs. Where systemd runs, slices are systemd's: see package units.
//
// It writes the files itself: containerd/cgroups cannot set v1's pids.max, nor any of
// v2's memory files, back to no limit.
type Limiter struct {
	dirs    map[string]string
	unified bool
}

// NewLimiter returns a limiter of a tree's slices. The error names the controller, cpu,
// memory or pids, that the tree lacks.
func NewLimiter(t Tree) (*Limiter, error) {
	dirs, err := t.controllers(cpu, memory, pids)
	if err != nil {
		return nil, err
	}
	return &Limiter{dirs: dirs, unified: t.Unified}, nil
}

// Apply makes the slice, and those above it, where they do not exist, and sets all its
// limits: CPU, memory and tasks. A nil aggregate and a nil field are no limit.
//
// v1 has nothing like MemoryHigh (memory.soft_limit_in_bytes does not slow anybody
// down): it is left out there. On v1 a memory limit below what the slice uses and the
// kernel cannot reclaim is refused, on v2 the kernel ends processes until it fits. All
// other limits are set even so; the error names each that was not, and why.
func (l *Limiter) Apply(cgroupPath string, a *policy.Aggregate) error {
	if err := checkPath(cgroupPath); err != nil {
		return err
	}
	if err := a.Validate(); err != nil {
		return fmt.Errorf("limit %s: %w", cgroupPath, err)
	}
	if a == nil {
		a = &policy.Aggregate{}
	}
	limit := l.applyV1
	if l.unified {
		limit = l.applyV2
	}
	if err := limit(cgroupPath, a); err != nil {
		return fmt.Errorf("limit %s: %w", cgroupPath, err)
	}
	return nil
}

func (l *Limiter) applyV2(cgroupPath string, a *policy.Aggregate) error {
	dir := l.dirs[memory]
	for _, name := range strings.Split(cgroupPath[1:], "/") {
		if err := enable(dir, cpu, memory, pids); err != nil {
			return err
		}
		dir = filepath.Join(dir, name)
		if err := makeDir(dir); err != nil {
			return err
		}
	}
	return errors.Join(
		write(dir, "cpu.max", orMax(quota(a))+" "+strconv.Itoa(cpuPeriod)),
		write(dir, "memory.high", orMax(a.MemoryHigh)),
		write(dir, "memory.max", orMax(a.MemoryMax)),
		write(dir, "pids.max", tasks(a)),
	)
}

// enable gives the cgroups below dir controllers.
func enable(dir string, controllers ...string) error {
	text, err := os.ReadFile(filepath.Join(dir, "cgroup.subtree_control"))
	if err != nil {
		return err
	}
	enabled := strings.Fields(string(text))
	for _, c := range controllers {
		if slices.Contains(enabled, c) {
			continue
		}
		// One at a time: the kernel takes all that are written at once or none.
		err := write(dir, "cgroup.subtree_control", "+"+c)
		switch {
		case errors.Is(err, unix.EBUSY):
			return fmt.Errorf("%w: processes run in this cgroup itself; they must end first", err)
		case errors.Is(err, unix.EINVAL) && c == cpu:
			return fmt.Errorf("%w: the kernel does not limit real-time processes; end those outside the root cgroup", err)
		case err != nil:
			return err
		}
	}
	return nil
}

func (l *Limiter) applyV1(cgroupPath string, a *policy.Aggregate) error {
	// Memory is last: a slice that Reader finds there is whole.
	for _, c := range []string{cpu, pids, memory} {
		dir := l.dirs[c]
		for _, name := range strings.Split(cgroupPath[1:], "/") {
			dir = filepath.Join(dir, name)
			if err := makeDir(dir); err != nil {
				return err
			}
			if c != memory {
				continue
			}
			if err := countChildren(dir); err != nil {
				return err
			}
		}
	}
	return errors.Join(
		l.limitCPU(filepath.Join(l.dirs[cpu], cgroupPath), quota(a)),
		write(filepath.Join(l.dirs[pids], cgroupPath), "pids.max", tasks(a)),
		limitMemory(filepath.Join(l.dirs[memory], cgroupPath), a.MemoryMax),
	)
}

// countChildren makes a v1 cgroup's memory that of the cgroups below it too. Kernels
// from 5.11 on always do.
func countChildren(dir string) error {
	const file = "memory.use_hierarchy"
	text, err := os.ReadFile(filepath.Join(dir, file))
	if isMissing(err) {
		return nil
	}
	if err == nil && strings.TrimSpace(string(text)) == "0" {
		err = write(dir, file, "1")
	}
	return err
}

func (l *Limiter) limitCPU(dir string, quota *int64) error {
	const file = "cpu.cfs_period_us"
	text, err := os.ReadFile(filepath.Join(dir, file))
	if err != nil {
		return err
	}
	if strings.TrimSpace(string(text)) != strconv.Itoa(cpuPeriod) {
		// The other quota is dropped first: it may not fit the new period.
		if err := errors.Join(write(dir, "cpu.cfs_quota_us", "-1"), write(dir, file, strconv.Itoa(cpuPeriod))); err != nil {
			return err
		}
	}
	err = write(dir, "cpu.cfs_quota_us", orMinusOne(quota))
	if errors.Is(err, unix.EINVAL) {
		return fmt.Errorf("%w: a container's quota may not be above its slice's, nor the slice's above that of one above it; "+
			"lower those of the running containers (docker update --cpus) or stop them", err)
	}
	return err
}

func limitMemory(dir string, limit *int64) error {
	err := write(dir, "memory.limit_in_bytes", orMinusOne(limit))
	if errors.Is(err, unix.EBUSY) {
		return fmt.Errorf("%w: more than %d bytes are in use and cannot be reclaimed; the limit stays as it was until containers are stopped", err, *limit)
	}
	return err
}

// quota returns microseconds of CPU time in each period.
func quota(a *policy.Aggregate) *int64 {
	if a.CPUQuota == nil {
		return nil
	}
	us := *a.CPUQuota * (cpuPeriod / 100)
	return &us
}

func tasks(a *policy.Aggregate) string {
	if a.TasksMax != nil && *a.TasksMax > mostPIDs {
		return orMax(nil)
	}
	return orMax(a.TasksMax)
}

func orMax(v *int64) string {
	if v == nil {
		return "max"
	}
	return strconv.FormatInt(*v, 10)
}

func orMinusOne(v *int64) string {
	if v == nil {
		return "-1"
	}
	return strconv.FormatInt(*v, 10)
}

func makeDir(dir string) error {
	if err := os.Mkdir(dir, 0o755); err != nil && !errors.Is(err, os.ErrExist) {
		return fmt.Errorf("make cgroup: %w", err)
	}
	return nil
}

// write sets a file that the kernel made: what is missing is not created, which a cgroup
// would answer with a misleading "permission denied".
func write(dir, file, value string) error {
	f, err := os.OpenFile(filepath.Join(dir, file), os.O_WRONLY|os.O_TRUNC, 0)
	if err != nil {
		return err
	}
	if _, err = f.WriteString(value); err != nil {
		err = fmt.Errorf("%q to %w", value, err)
	}
	return errors.Join(err, f.Close())
}
