package policy

import (
	"errors"
	"fmt"
	"math"
)

// maxCPUQuota, in percent, is the kernel's largest quota of 44 bits of microseconds, in a
// period of 100 ms.
const maxCPUQuota = (1<<44 - 1) / 1000

// Validate returns an error that names every limit the kernel and systemd would not
// take: each must be above zero. 1 % is also the kernel's smallest CPU quota, a
// millisecond in its usual period of 100. No aggregate is valid.
func (a *Aggregate) Validate() error {
	if a == nil {
		return nil
	}
	var errs []error
	for _, l := range []struct {
		name  string
		value *int64
		most  int64
	}{
		{"cpu quota", a.CPUQuota, maxCPUQuota},
		{"memory max", a.MemoryMax, math.MaxInt64},
		{"memory high", a.MemoryHigh, math.MaxInt64},
		{"tasks max", a.TasksMax, math.MaxInt64},
	} {
		if l.value != nil && (*l.value < 1 || *l.value > l.most) {
			errs = append(errs, fmt.Errorf("%s of %d is not between 1 and %d", l.name, *l.value, l.most))
		}
	}
	return errors.Join(errs...)
}
