package integration

import (
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/ds01/ds01-proxy/integration/lab"
)

// kill ends a container's process from outside, which the Engine takes for its own end.
func kill(t *testing.T, pid int) {
	t.Helper()
	if pid <= 1 {
		t.Fatalf("process %d", pid)
	}
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		t.Error(err)
	}
}

// Ceilings of TestEveryField.
const (
	mostMemory = 64 << 20
	mostShm    = 16 << 20
	mostPids   = 50
	mostQuota  = 50_000
)

// within looks into the cgroups and mounts of a container that runs, and tells what is
// over a limit.
func (d *desk) within(who lab.Person, c kept) (over []string) {
	for file, most := range map[string]int64{
		"memory.limit_in_bytes": mostMemory, "memory.memsw.limit_in_bytes": mostMemory, "pids.max": mostPids,
	} {
		if n, err := strconv.ParseInt(d.figure(who, file, c.ID), 10, 64); err != nil || n > most || n <= 0 {
			over = append(over, file+" is "+d.figure(who, file, c.ID))
		}
	}
	quota, err := strconv.ParseInt(d.figure(who, "cpu.cfs_quota_us", c.ID), 10, 64)
	period, err2 := strconv.ParseInt(d.figure(who, "cpu.cfs_period_us", c.ID), 10, 64)
	if err != nil || err2 != nil || quota <= 0 || quota*100_000 > mostQuota*period {
		over = append(over, fmt.Sprintf("the CPU quota is %d of %d", quota, period))
	}
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/mountinfo", c.State.Pid))
	if err != nil {
		return append(over, err.Error())
	}
	for line := range strings.Lines(string(text)) {
		f := strings.Fields(line)
		before, after, _ := strings.Cut(line, " - ")
		if !strings.HasPrefix(after, "tmpfs ") && !strings.HasPrefix(after, "shm ") || strings.HasPrefix(f[4], "/dev") && f[4] != "/dev/shm" ||
			strings.HasPrefix(f[4], "/proc") || strings.HasPrefix(f[4], "/sys") {
			continue
		}
		most := int64(mostMemory)
		if f[4] == "/dev/shm" {
			most = mostShm
		}
		var st syscall.Statfs_t
		if err := syscall.Statfs(filepath.Join("/proc", strconv.Itoa(c.State.Pid), "root", f[4]), &st); err != nil {
			over = append(over, before+": "+err.Error())
		} else if size := int64(st.Blocks) * st.Bsize; size > most || size == 0 {
			over = append(over, fmt.Sprintf("%s has %d bytes", f[4], size))
		}
	}
	return over
}

// TestEveryField says 0, -1 and huge values for every limit, when a container is made and
// when it is changed: what is let through is within the limits, as the kernel has it.
func TestEveryField(t *testing.T) {
	d := newDesk(t, theEngine, "{max_cpus: 0.5, memory: 64m, memory_swap: 64m, shm_size: 16m, pids_limit: 50}", "")
	values := []string{"0", "-1", "-2", "1", "9223372036854775807", "-9223372036854775808", "68719476736", "null"}
	var bodies []string
	for _, key := range []string{"Memory", "MemorySwap", "NanoCpus", "CpuQuota", "CpuPeriod", "PidsLimit", "ShmSize", "MemoryReservation", "CpuShares", "KernelMemory"} {
		for _, v := range values {
			bodies = append(bodies, fmt.Sprintf(`"%s":%s`, key, v))
		}
	}
	for _, size := range []string{"", "size=1g", "size=0", "size=100%", "size=200%", "size=90%", "size=-1", "size=32m", "size=8589934592", "size=1k,size=1g", "nr_blocks=100000", "nr_inodes=5", "huge=always", "exec,SIZE=1g", "size=1T", "size=", "size=0x100000000"} {
		bodies = append(bodies, fmt.Sprintf(`"Tmpfs":{"/t":%q}`, size))
	}
	for _, options := range []string{"", `,"TmpfsOptions":null`, `,"TmpfsOptions":{}`, `,"TmpfsOptions":{"SizeBytes":0}`, `,"TmpfsOptions":{"SizeBytes":-1}`, `,"TmpfsOptions":{"SizeBytes":1099511627776}`, `,"TmpfsOptions":{"Mode":511}`} {
		bodies = append(bodies, `"Mounts":[{"Type":"tmpfs","Target":"/t"`+options+`}]`)
	}
	bodies = append(bodies,
		`"Memory":67108864,"memory":1073741824`, `"Memory":67108864,"MEMORYSWAP":-1`, `"Memory":33554432,"MemorySwap":67108864`, `"Memory":33554432,"MemorySwap":-1`,
		`"CpuPeriod":1000,"CpuQuota":50000`, `"CpuPeriod":1000000`, `"CpuPeriod":1000000,"CpuQuota":500000`, `"CpuPeriod":1000`, `"NanoCpus":500000000,"CpuQuota":-1`,
		`"PidsLimit":50,"pidslimit":-1`, `"Resources":{"Memory":1099511627776}`, `"IpcMode":"none"`, `"IpcMode":"private","ShmSize":17000000`, `"Ulimits":[{"Name":"memlock","Soft":-1,"Hard":-1}]`,
	)
	through := 0
	for _, body := range bodies {
		id, got := d.create(lab.Alice, body)
		if got.status != http.StatusCreated {
			if got.status != http.StatusForbidden && got.status != http.StatusBadRequest {
				t.Errorf("create %s: %d %s", body, got.status, got.body)
			}
			continue
		}
		if got := d.start(lab.Alice, id); got.status == http.StatusNoContent {
			through++
			if c, ok := d.one(id); ok {
				for _, what := range d.within(lab.Alice, c) {
					t.Errorf("create %s: %s", body, what)
				}
			}
		}
		_, _ = d.e.Docker(limit(t), "rm", "-f", "-v", id)
	}
	if through < 20 {
		t.Errorf("only %d of %d were let through", through, len(bodies))
	}
	// Running, and changed.
	id, got := d.create(lab.Alice, `"Memory":33554432,"NanoCpus":250000000,"PidsLimit":20`)
	if got.status != http.StatusCreated || d.start(lab.Alice, id).status != http.StatusNoContent {
		t.Fatal(got)
	}
	changed, over := 0, 0
	for _, body := range bodies {
		if strings.Contains(body, "mpfs") {
			continue
		}
		got := d.ask(lab.Alice, "POST", "/containers/"+id+"/update", "{"+body+"}")
		if got.status == http.StatusOK {
			changed++
		}
		c, _ := d.one(id)
		for _, what := range d.within(lab.Alice, c) {
			t.Errorf("update %s: %d %s: %s", body, got.status, got.body, what)
			over++
		}
		if over > 0 {
			// What follows would be blamed for it.
			break
		}
	}
	if changed < 10 {
		t.Errorf("only %d changes were let through", changed)
	}
	for _, args := range []string{"--pids-limit -1", "--memory-swap -1", "--cpus 99", "--cpu-quota -1", "--memory 1g --memory-swap 1g", "--pids-limit 51"} {
		d.refused(lab.Alice, []string{"rule container-limits"}, append(append([]string{"update"}, strings.Fields(args)...), id)...)
	}
	d.must(lab.Alice, "update", "--memory", "64m", "--cpus", "0.5", "--pids-limit", "50", id)
}
