package limits

import (
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/ds01/ds01-proxy/policy"
)

// FuzzLimits reads any files. Those that are taken give limits that are in range, and that
// are the same when they are written down and read again.
func FuzzLimits(f *testing.F) {
	files, err := filepath.Glob("testdata/*.txt")
	if err != nil {
		f.Fatal(err)
	}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			f.Fatal(err)
		}
		input, _, _ := strings.Cut(string(text), "----\n")
		in := sections(input)
		f.Add(in["resource-limits.yaml"], in["groups/student.members"], in["user-overrides.yaml"])
	}
	f.Fuzz(func(t *testing.T, file, members, overrides string) {
		all := map[string]string{"/d/resource-limits.yaml": file, "/d/groups/student.members": members, "/d/user-overrides.yaml": overrides}
		s, problems := load("/d/resource-limits.yaml", reading(all))
		if (s == nil) != (len(problems) > 0) {
			t.Fatalf("state %v, problems %v", s, problems)
		}
		if s == nil {
			for _, p := range problems {
				if p.File == "" || p.Text == "" || p.Line < 0 {
					t.Errorf("problem %+v", p)
				}
			}
			return
		}
		users := slices.Concat([]string{"nobody"}, slices.Collect(maps.Keys(s.listed)), slices.Collect(maps.Keys(s.overrides)))
		for _, user := range users {
			group, err := s.groupOf(user, nil)
			if err != nil {
				t.Fatal(err)
			}
			l := s.of(user, group)
			if text := outOfRange(l); text != "" {
				t.Errorf("%q of %q: %s", user, group, text)
			}
			again, problems := load("/d/resource-limits.yaml", reading(map[string]string{"/d/resource-limits.yaml": rendered(l)}))
			if len(problems) > 0 {
				t.Fatalf("%q: %+v is written\n%sand has problems: %v", user, l, rendered(l), problems)
			}
			if got := again.of(user, ""); !reflect.DeepEqual(got, l) {
				t.Errorf("%q: %+v is written\n%sand read as %+v", user, l, rendered(l), got)
			}
		}
	})
}

// reading answers from a map of files.
func reading(files map[string]string) func(string) ([]byte, error) {
	return func(path string) ([]byte, error) {
		if text, ok := files[path]; ok {
			return []byte(text), nil
		}
		return nil, os.ErrNotExist
	}
}

// rendered writes limits as the defaults of a file.
func rendered(l policy.Limits) string {
	var inner, outer strings.Builder
	for _, line := range explain(l, origins{}) {
		to := &outer
		key, aggregate := strings.CutPrefix(line.Key, "aggregate.")
		if aggregate {
			to = &inner
		}
		value := line.Value
		if value == "unlimited" {
			value = "null"
		}
		fmt.Fprintf(to, "%s: %s, ", key, value)
	}
	return "defaults: {" + outer.String() + "aggregate: {" + inner.String() + "}}\n"
}

// outOfRange says which limit a file must not give.
func outOfRange(l policy.Limits) string {
	if l.Aggregate == nil {
		l.Aggregate = new(policy.Aggregate)
	}
	c, a := &l.PerContainer, l.Aggregate
	for name, v := range map[string]*int64{
		"memory": c.Memory, "memory_swap": c.MemorySwap, "shm_size": c.ShmSize, "max_cpus": c.NanoCPUs, "pids_limit": c.PIDs,
		"cpu_quota": a.CPUQuota, "memory_max": a.MemoryMax, "memory_high": a.MemoryHigh, "tasks_max": a.TasksMax,
	} {
		if v != nil && *v <= 0 {
			return fmt.Sprintf("%s is %d", name, *v)
		}
	}
	for name, v := range map[string]*float64{"max_gpu_equivalents": l.MaxGPUs, "gpu_limit": a.GPUs} {
		if v != nil && !(*v >= 0 && *v <= maxGPUs) {
			return fmt.Sprintf("%s is %v", name, *v)
		}
	}
	switch {
	case l.MaxContainers != nil && *l.MaxContainers <= 0:
		return fmt.Sprintf("max_containers_per_user is %d", *l.MaxContainers)
	case l.MaxGPUSlots != nil && *l.MaxGPUSlots < 0:
		return fmt.Sprintf("max_gpu_slots_per_container is %d", *l.MaxGPUSlots)
	case c.Memory != nil && c.MemorySwap != nil && *c.MemorySwap < *c.Memory:
		return fmt.Sprintf("memory_swap %d is below memory %d", *c.MemorySwap, *c.Memory)
	}
	return ""
}
