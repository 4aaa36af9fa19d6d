package policy

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"github.com/docker/docker/api/types/container"
)

const gib = int64(1) << 30

// oneLimits are the limits of one container in these tests.
func oneLimits() *ContainerLimits {
	return &ContainerLimits{Memory: ptr(4 * gib), MemorySwap: ptr(6 * gib), ShmSize: ptr(gib), NanoCPUs: ptr(int64(2e9)), PIDs: ptr(int64(100))}
}

var fourCPUs = Host{CPUs: 4}

func hostConfig(t *testing.T, text string) *container.CreateRequest {
	t.Helper()
	var req container.CreateRequest
	if err := json.Unmarshal([]byte(`{"Image":"i","HostConfig":`+text+`}`), &req); err != nil {
		t.Fatal(err)
	}
	return &req
}

func shown(r *container.Resources) string {
	pids := "-"
	if r.PidsLimit != nil {
		pids = fmt.Sprint(*r.PidsLimit)
	}
	return fmt.Sprintf("m=%s s=%s n=%g q=%d p=%d pids=%s", Bytes(r.Memory), Bytes(r.MemorySwap), float64(r.NanoCPUs)/1e9, r.CPUQuota, r.CPUPeriod, pids)
}

// TestContainerCeilings: want is what is forwarded, "" where it is refused.
func TestContainerCeilings(t *testing.T) {
	const rest = " n=2 q=0 p=0 pids=100"
	for _, r := range []struct{ host, want string }{
		{`null`, "m=4g s=6g" + rest},
		{`{}`, "m=4g s=6g" + rest},
		{`{"Memory":4294967296}`, "m=4g s=6g" + rest},
		{`{"Memory":1073741824}`, "m=1g s=3g" + rest},
		{`{"Memory":4294967297}`, ""},
		{`{"Memory":-1}`, ""},
		{`{"Memory":9223372036854775807}`, ""},
		{`{"Memory":-9223372036854775808}`, ""},
		{`{"MemorySwap":-1}`, ""},
		{`{"MemorySwap":6442450944}`, "m=4g s=6g" + rest},
		{`{"MemorySwap":6442450945}`, ""},
		{`{"Memory":1073741824,"MemorySwap":6442450944}`, "m=1g s=6g" + rest},
		// The Engine refuses memory and swap that are less than memory.
		{`{"Memory":2147483648,"MemorySwap":1073741824}`, "m=2g s=1g" + rest},
		{`{"NanoCpus":2000000000}`, "m=4g s=6g" + rest},
		{`{"NanoCpus":2000000001}`, ""},
		{`{"NanoCpus":10000000}`, "m=4g s=6g n=0.01 q=0 p=0 pids=100"},
		// Below that the Engine rounds down to a quota of 0, which is none.
		{`{"NanoCpus":9999999}`, ""},
		{`{"NanoCpus":1}`, ""},
		{`{"NanoCpus":-1}`, ""},
		{`{"CpuQuota":200000}`, "m=4g s=6g n=0 q=200000 p=0 pids=100"},
		{`{"CpuQuota":200001}`, ""},
		{`{"CpuQuota":-1}`, ""},
		{`{"CpuQuota":9223372036854775807,"CpuPeriod":1000000}`, ""},
		{`{"CpuQuota":2000,"CpuPeriod":1000}`, "m=4g s=6g n=0 q=2000 p=1000 pids=100"},
		{`{"CpuQuota":2001,"CpuPeriod":1000}`, ""},
		{`{"CpuQuota":3,"CpuPeriod":1}`, ""},
		// The Engine refuses periods that are negative, and both kinds of quota at once.
		{`{"CpuQuota":200001,"CpuPeriod":-1}`, ""},
		{`{"NanoCpus":1000000000,"CpuQuota":-1}`, ""},
		{`{"NanoCpus":1000000000,"CpuQuota":200001}`, ""},
		{`{"CpuPeriod":50000}`, "m=4g s=6g n=0 q=100000 p=50000 pids=100"},
		{`{"PidsLimit":0}`, "m=4g s=6g" + rest},
		{`{"PidsLimit":100}`, "m=4g s=6g" + rest},
		{`{"PidsLimit":101}`, ""},
		{`{"PidsLimit":-1}`, ""},
		{`{"ShmSize":1073741824}`, "m=4g s=6g" + rest},
		{`{"ShmSize":1073741825}`, ""},
		{`{"ShmSize":1073741825,"IpcMode":"shareable"}`, ""},
		{`{"ShmSize":-1}`, ""},
		// Neither is a limit of anything else.
		{`{"KernelMemory":9223372036854775807,"MemorySwappiness":100,"MemoryReservation":9223372036854775807,"CpuShares":262144}`, "m=4g s=6g" + rest},
	} {
		req := hostConfig(t, r.host)
		v := ContainerCeilings(oneLimits(), fourCPUs, req)
		switch {
		case v.Allowed() != (r.want != ""), v.Rule != "container-limits":
			t.Errorf("%s: %+v", r.host, v)
		case v.Allowed() && shown(&req.HostConfig.Resources) != r.want:
			t.Errorf("%s: %s, want %s", r.host, shown(&req.HostConfig.Resources), r.want)
		case v.Allowed() && req.HostConfig.ShmSize != gib:
			t.Errorf("%s: shm %d", r.host, req.HostConfig.ShmSize)
		}
	}
}

// TestCeilingsAreSaid: a refusal names the option and the most there is.
func TestCeilingsAreSaid(t *testing.T) {
	for host, words := range map[string]string{
		`{"Memory":5368709120}`: "--memory 5g;limit for one container, 4g", `{"MemorySwap":-1}`: "--memory-swap -1 means no limit;6g", `{"NanoCpus":2500000000}`: "--cpus 2.5;2 ",
		`{"CpuQuota":250000}`: "--cpu-quota 250000 (2.5 CPUs);2 CPUs", `{"PidsLimit":-1}`: "--pids-limit -1 means no limit;100", `{"ShmSize":2147483648}`: "--shm-size 2g;1g",
		`{"Tmpfs":{"/t":"size=5g"}}`: "--tmpfs /t with size 5g;4g",
	} {
		v := ContainerCeilings(oneLimits(), fourCPUs, hostConfig(t, host))
		for word := range strings.SplitSeq(words, ";") {
			if v.Allowed() || !strings.Contains(v.Reason, word) {
				t.Errorf("%s: %q does not say %q", host, v.Reason, word)
			}
		}
	}
}

// TestCeilingsThatAreNotThere: null is unlimited, and limits may be less than usual.
func TestCeilingsThatAreNotThere(t *testing.T) {
	const all = `{"Memory":-1,"MemorySwap":-1,"NanoCpus":900000000000,"PidsLimit":-1,"ShmSize":9223372036854775807,"Tmpfs":{"/t":"size=100%"},"Mounts":[{"Type":"tmpfs","Target":"/m"}]}`
	req := hostConfig(t, all)
	before, _ := json.Marshal(req)
	if v := ContainerCeilings(&ContainerLimits{}, Host{}, req); !v.Allowed() {
		t.Error(v)
	}
	if after, _ := json.Marshal(req); string(after) != string(before) {
		t.Errorf("%s became %s", before, after)
	}
	for _, r := range []struct {
		l    ContainerLimits
		host Host
		ask  string
		want string
	}{
		{ContainerLimits{Memory: ptr(gib)}, Host{}, `{"MemorySwap":-1}`, "m=1g s=-1 n=0 q=0 p=0 pids=-"},
		// Memory with swap is no less than memory.
		{ContainerLimits{MemorySwap: ptr(gib)}, Host{}, `{}`, "m=1g s=1g n=0 q=0 p=0 pids=-"},
		{ContainerLimits{MemorySwap: ptr(gib)}, Host{}, `{"Memory":1073741825}`, ""},
		{ContainerLimits{Memory: ptr(2 * gib), MemorySwap: ptr(gib)}, Host{}, `{}`, "m=1g s=1g n=0 q=0 p=0 pids=-"},
		{ContainerLimits{NanoCPUs: ptr(int64(32e9))}, fourCPUs, `{}`, "m=0 s=0 n=4 q=0 p=0 pids=-"},
		{ContainerLimits{NanoCPUs: ptr(int64(32e9))}, Host{}, `{}`, "m=0 s=0 n=32 q=0 p=0 pids=-"},
		{ContainerLimits{NanoCPUs: ptr(int64(32e9))}, fourCPUs, `{"CpuPeriod":10000}`, "m=0 s=0 n=0 q=40000 p=10000 pids=-"},
	} {
		req := hostConfig(t, r.ask)
		if v := ContainerCeilings(&r.l, r.host, req); v.Allowed() != (r.want != "") || v.Allowed() && shown(&req.HostConfig.Resources) != r.want {
			t.Errorf("%s: %+v, %s, want %s", r.ask, v, shown(&req.HostConfig.Resources), r.want)
		}
	}
}

// TestUpdateCeilings: what is unset stays unset, since what there is stays.
func TestUpdateCeilings(t *testing.T) {
	for _, r := range []struct{ ask, want string }{
		{`{}`, "m=0 s=0 n=0 q=0 p=0 pids=-"},
		{`{"Memory":4294967296}`, "m=4g s=6g n=0 q=0 p=0 pids=-"},
		{`{"Memory":1073741824}`, "m=1g s=3g n=0 q=0 p=0 pids=-"},
		{`{"Memory":1073741824,"MemorySwap":1073741824}`, "m=1g s=1g n=0 q=0 p=0 pids=-"},
		{`{"Memory":4294967297}`, ""},
		{`{"Memory":-1}`, ""},
		{`{"MemorySwap":-1}`, ""},
		{`{"Memory":1073741824,"MemorySwap":-1}`, ""},
		{`{"MemorySwap":6442450944}`, "m=0 s=6g n=0 q=0 p=0 pids=-"},
		{`{"MemorySwap":6442450945}`, ""},
		{`{"NanoCPUs":2000000000}`, "m=0 s=0 n=2 q=0 p=0 pids=-"},
		{`{"NanoCPUs":2000000001}`, ""},
		{`{"NanoCPUs":1000}`, ""},
		{`{"NanoCPUs":-1}`, ""},
		{`{"CpuQuota":-1}`, ""},
		// The period that the container has would make another share of the quota.
		{`{"CpuQuota":200000}`, "m=0 s=0 n=0 q=200000 p=100000 pids=-"},
		{`{"CpuQuota":200001}`, ""},
		{`{"CpuPeriod":1000}`, ""},
		{`{"CpuPeriod":1000,"CpuQuota":2000}`, "m=0 s=0 n=0 q=2000 p=1000 pids=-"},
		{`{"CpuPeriod":1000,"CpuQuota":2001}`, ""},
		// 0 is no limit there, as are negative numbers.
		{`{"PidsLimit":0}`, "m=0 s=0 n=0 q=0 p=0 pids=-"},
		{`{"PidsLimit":100}`, "m=0 s=0 n=0 q=0 p=0 pids=100"},
		{`{"PidsLimit":101}`, ""},
		{`{"PidsLimit":-1}`, ""},
	} {
		var u container.UpdateConfig
		if err := json.Unmarshal([]byte(r.ask), &u); err != nil {
			t.Fatal(err)
		}
		if v := UpdateCeilings(oneLimits(), fourCPUs, &u); v.Allowed() != (r.want != "") || v.Allowed() && shown(&u.Resources) != r.want {
			t.Errorf("%s: %+v, %s, want %s", r.ask, v, shown(&u.Resources), r.want)
		}
	}
}

// TestTmpfsCeilings: want is the options that are forwarded, "" where it is refused.
func TestTmpfsCeilings(t *testing.T) {
	const most = "size=4294967296"
	for _, r := range []struct{ options, want string }{
		{"", most}, {"mode=755", "mode=755," + most}, {"noexec,,mode=1", "noexec,mode=1," + most},
		{"size=4g", most}, {"size=4294967296", most}, {"size=4G", most}, {"size=4194304k", most}, {"size=4096m", most}, {"size=1K", "size=1024"},
		{"size=4294967297", ""}, {"size=5g", ""}, {"size=1t", ""}, {"size=9223372036854775807", ""}, {"size=18446744073709551616", ""}, {"size=8388608t", ""}, {"size=99999999999999999999g", ""},
		{"size=0", ""}, {"size=0g", ""}, {"size=-1", ""}, {"size=", ""}, {"size", ""}, {"size=g", ""}, {"size=1p", ""}, {"size=0x7fffffffff", ""}, {"size=1gk", ""}, {"size= 1g", ""},
		// The kernel reads a leading 0 as octal; what arrives has none.
		{"size=010", "size=10"},
		// Of the host's memory to the kernel; here of the limit.
		{"size=50%", "size=2147483600"}, {"size=100%", "size=4294967200"}, {"size=101%", ""}, {"size=0%", ""}, {"size=-5%", ""}, {"size=1e2%", ""},
		// The Engine takes the last of several.
		{"size=1g,size=5g", ""}, {"size=5g,size=1g", ""}, {"size=1g,size=2g", "size=1073741824,size=2147483648"}, {"size=1g,size=0", ""},
		// The Engine knows no such option and refuses it.
		{"SIZE=5g", "SIZE=5g," + most},
		{"nr_blocks=9999999", ""}, {"huge=always", ""}, {"nr_inodes=1k", "nr_inodes=1k," + most},
	} {
		req := &container.CreateRequest{HostConfig: &container.HostConfig{Tmpfs: map[string]string{"/t": r.options}}}
		if v := ContainerCeilings(oneLimits(), fourCPUs, req); v.Allowed() != (r.want != "") || v.Allowed() && req.HostConfig.Tmpfs["/t"] != r.want {
			t.Errorf("%q: %+v, %q, want %q", r.options, v, req.HostConfig.Tmpfs["/t"], r.want)
		}
	}
	for _, r := range []struct {
		host string
		want int64
	}{
		{`{"Mounts":[{"Type":"tmpfs","Target":"/t"}]}`, 4 * gib},
		{`{"Memory":1073741824,"Mounts":[{"Type":"tmpfs","Target":"/t"}]}`, gib},
		{`{"Mounts":[{"Type":"tmpfs","Target":"/dev/shm/../shm/"}]}`, gib},
		{`{"Mounts":[{"Type":"tmpfs","Target":"/dev/shm","TmpfsOptions":{"SizeBytes":1073741825}}]}`, 0},
		{`{"Mounts":[{"Type":"tmpfs","Target":"/t","TmpfsOptions":{"SizeBytes":4294967296}}]}`, 4 * gib},
		{`{"Mounts":[{"Type":"tmpfs","Target":"/t","TmpfsOptions":{"SizeBytes":4294967297}}]}`, 0},
		{`{"Mounts":[{"Type":"tmpfs","Target":"/t","TmpfsOptions":{"SizeBytes":-1}}]}`, 0},
		{`{"Memory":1073741824,"Mounts":[{"Type":"tmpfs","Target":"/t","TmpfsOptions":{"SizeBytes":1073741825}}]}`, 0},
		{`{"Mounts":[{"Type":"tmpfs","Target":"/t","TmpfsOptions":{"SizeBytes":5,"Options":[["noexec"]]}}]}`, 5},
		{`{"Mounts":[{"Type":"tmpfs","Target":"/t","TmpfsOptions":{"Options":[["size","0"]]}}]}`, 0},
		{`{"Mounts":[{"Type":"tmpfs","Target":"/t","TmpfsOptions":{"Options":[["size=0"]]}}]}`, 0},
		{`{"Mounts":[{"Type":"tmpfs","Target":"/t","TmpfsOptions":{"Options":[["exec,size=0"]]}}]}`, 0},
		{`{"Mounts":[{"Type":"tmpfs","Target":"/t","TmpfsOptions":{"Options":[["mode","1,size=0"]]}}]}`, 0},
	} {
		req := hostConfig(t, r.host)
		if v := ContainerCeilings(oneLimits(), fourCPUs, req); v.Allowed() != (r.want != 0) || v.Allowed() && req.HostConfig.Mounts[0].TmpfsOptions.SizeBytes != r.want {
			t.Errorf("%s: %+v, %+v", r.host, v, req.HostConfig.Mounts[0].TmpfsOptions)
		}
	}
}

func TestBytes(t *testing.T) {
	for n, want := range map[int64]string{0: "0", 1: "1", 1023: "1023", 1024: "1k", 1536: "1.5k", 1 << 20: "1m", gib: "1g", 96 * gib: "96g", gib + gib/2: "1.5g", 1 << 40: "1t", -gib: "-1g", 1<<63 - 1: "8388608t"} {
		if got := Bytes(n); got != want {
			t.Errorf("%d: %s, want %s", n, got, want)
		}
	}
}
