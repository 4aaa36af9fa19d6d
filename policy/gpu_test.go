package policy

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/docker/docker/api/types/container"
)

// TestAskedGPUs: want is all, or how many, and env where nothing but the environment asks.
func TestAskedGPUs(t *testing.T) {
	nvidia := Host{DefaultRuntime: "nvidia"}
	for _, r := range []struct {
		body, image string
		host        Host
		want        string
	}{
		{`{}`, "", Host{}, "0"},
		{`{"HostConfig":{"DeviceRequests":[{"Count":-1,"Capabilities":[["gpu"]]}]}}`, "", Host{}, "all"},
		{`{"HostConfig":{"DeviceRequests":[{"Count":2}]}}`, "", Host{}, "2"},
		{`{"HostConfig":{"DeviceRequests":[{"Count":0}]}}`, "", Host{}, "all"},
		{`{"HostConfig":{"DeviceRequests":[{"DeviceIDs":["ALL"]}]}}`, "", Host{}, "all"},
		{`{"HostConfig":{"DeviceRequests":[{"Driver":"cdi","DeviceIDs":["nvidia.com/gpu=All"]}]}}`, "", Host{}, "all"},
		{`{"HostConfig":{"DeviceRequests":[{"Count":1},{"Count":1}]}}`, "", Host{}, "2"},
		// Nobody gets none by asking for more than there are numbers.
		{`{"HostConfig":{"DeviceRequests":[{"Count":9223372036854775807},{"Count":9223372036854775807}]}}`, "", Host{}, "1048576"},
		{`{"HostConfig":{"DeviceRequests":[{"DeviceIDs":["0","GPU-abc"]}]}}`, "", Host{}, "2"},
		{`{"HostConfig":{"DeviceRequests":[{"DeviceIDs":["0"]},{"DeviceIDs":["0"]}]}}`, "", Host{}, "1"},
		{`{"HostConfig":{"DeviceRequests":[{"DeviceIDs":["0,1,2"]}]}}`, "", Host{}, "3"},
		{`{"HostConfig":{"DeviceRequests":[{"DeviceIDs":["0,all"]}]}}`, "", Host{}, "all"},
		{`{"HostConfig":{"DeviceRequests":[{"DeviceIDs":["all"]}]}}`, "", Host{}, "all"},
		{`{"HostConfig":{"DeviceRequests":[{"Driver":"cdi","DeviceIDs":["nvidia.com/gpu=0","nvidia.com/gpu=1:0"]}]}}`, "", Host{}, "2"},
		{`{"HostConfig":{"DeviceRequests":[{"Driver":"cdi","DeviceIDs":["nvidia.com/gpu=all"]}]}}`, "", Host{}, "all"},
		{`{"HostConfig":{"DeviceRequests":[{"Driver":"cdi","DeviceIDs":["amd.com/gpu=all"]}]}}`, "", Host{}, "all"},
		{`{"HostConfig":{"Devices":[{"PathOnHost":"/dev/nvidia0"},{"PathOnHost":"/dev/nvidia12"}]}}`, "", Host{}, "2"},
		{`{"HostConfig":{"Devices":[{"PathOnHost":"/dev/nvidia0"},{"PathOnHost":"/dev/../dev//nvidia0"}]}}`, "", Host{}, "1"},
		{`{"HostConfig":{"Devices":[{"PathOnHost":"/dev/"}]}}`, "", Host{}, "all"},
		{`{"HostConfig":{"Devices":[{"PathOnHost":"/dev/nvidia-caps/"}]}}`, "", Host{}, "all"},
		{`{"HostConfig":{"Devices":[{"PathOnHost":"/dev/nvidiactl"},{"PathOnHost":"/dev/nvidia-uvm"},{"PathOnHost":"/dev/1"}]}}`, "", Host{}, "0"},
		// The environment counts where nvidia's runtime reads it.
		{`{"Env":["NVIDIA_VISIBLE_DEVICES=all"]}`, "all", Host{}, "0"},
		{`{}`, "all", nvidia, "all env"},
		{`{"HostConfig":{"Runtime":"nvidia"}}`, "0,1", Host{}, "2 env"},
		{`{"HostConfig":{"Runtime":"runc"}}`, "0,1", nvidia, "0"},
		{`{"Env":["NVIDIA_VISIBLE_DEVICES=0"]}`, "all", nvidia, "1 env"},
		{`{"Env":["NVIDIA_VISIBLE_DEVICES=0","NVIDIA_VISIBLE_DEVICES=all"]}`, "", nvidia, "all env"},
		{`{"Env":["NVIDIA_VISIBLE_DEVICES=0,GPU-x,0"]}`, "", nvidia, "2 env"},
		{`{"Env":["NVIDIA_VISIBLE_DEVICES=void"]}`, "all", nvidia, "0"},
		{`{"Env":["NVIDIA_VISIBLE_DEVICES=none"]}`, "all", nvidia, "0"},
		{`{"Env":["NVIDIA_VISIBLE_DEVICES="]}`, "all", nvidia, "0"},
		{`{"Env":["NVIDIA_VISIBLE_DEVICES"]}`, "all", nvidia, "0"},
		{`{"HostConfig":{"DeviceRequests":[{"Count":1}]}}`, "all", nvidia, "1"},
	} {
		var req container.CreateRequest
		if err := json.Unmarshal([]byte(r.body), &req); err != nil {
			t.Fatal(err)
		}
		if req.Config == nil {
			req.Config = &container.Config{}
		}
		var env []string
		if r.image != "" {
			env = []string{"PATH=/bin", "NVIDIA_VISIBLE_DEVICES=" + r.image}
		}
		ask := AskedGPUs(&req, env, r.host)
		got := fmt.Sprint(ask.Count)
		if ask.All {
			got = "all"
		}
		if ask.ByEnv {
			got += " env"
		}
		if got != r.want || ask.Any() != (r.want != "0") || ask.Any() && ask.Field == "" {
			t.Errorf("%s, image %q: %s, want %s (%+v)", r.body, r.image, got, r.want, ask)
		}
	}
}

// TestGrantGPUs: hidden is true where nvidia's runtime is kept from giving any.
func TestGrantGPUs(t *testing.T) {
	for _, r := range []struct {
		env     []string
		host    string
		may     bool
		any     bool
		visible string
	}{
		{[]string{"A=b", "NVIDIA_VISIBLE_DEVICES=all"}, `{"Runtime":"nvidia"}`, true, true, "all"},
		{[]string{"A=b", "NVIDIA_VISIBLE_DEVICES=all"}, `{"Runtime":"nvidia"}`, false, false, "void"},
		{nil, `{"Runtime":"nvidia"}`, true, false, "void"},
		{nil, `{}`, true, false, ""},
		{[]string{"NVIDIA_VISIBLE_DEVICES=all"}, `{}`, false, false, "all"},
		{[]string{"NVIDIA_VISIBLE_DEVICES=all", "NVIDIA_VISIBLE_DEVICES"}, `{"Runtime":"nvidia"}`, false, false, "void"},
		// A device request that asks for nothing, or names devices itself, opens no other way.
		{[]string{"NVIDIA_VISIBLE_DEVICES=all"}, `{"Runtime":"nvidia","DeviceRequests":[{"Driver":"cdi"}]}`, false, true, "void"},
		{[]string{"NVIDIA_VISIBLE_DEVICES=all"}, `{"Runtime":"runc","DeviceRequests":[{"Capabilities":[["gpu"]]}]}`, true, true, "void"},
		{[]string{"NVIDIA_VISIBLE_DEVICES=all"}, `{"Runtime":"nvidia","DeviceRequests":[{"Driver":"cdi","DeviceIDs":["nvidia.com/gpu=0"]}]}`, true, true, "void"},
		{[]string{"NVIDIA_VISIBLE_DEVICES=all"}, `{"Runtime":"nvidia","Devices":[{"PathOnHost":"/dev/nvidia0"}]}`, true, true, "void"},
	} {
		req := hostConfig(t, r.host)
		req.Env = r.env
		got := GrantGPUs(req, AskedGPUs(req, nil, Host{}), r.may, Host{})
		value, _, _ := visible(req, nil)
		if got.Any() != r.any || value != r.visible || slices.Contains(r.env, "A=b") && !slices.Contains(req.Env, "A=b") {
			t.Errorf("%q, %s, may %t: %+v, environment %q", r.env, r.host, r.may, got, req.Env)
		}
	}
}

func TestMayHaveGPUs(t *testing.T) {
	zero, one, none := 0, 1, 0.0
	for _, r := range []struct {
		p    Profile
		l    Limits
		want bool
	}{
		{Profile{}, Limits{}, false},
		{Profile{GPUs: true}, Limits{}, true},
		{Profile{OwnershipOnly: true}, Limits{MaxGPUSlots: &one}, true},
		{Profile{GPUs: true}, Limits{MaxGPUSlots: &zero}, false},
		{Profile{GPUs: true}, Limits{MaxGPUs: &none}, false},
		{Profile{GPUs: true}, Limits{Aggregate: &Aggregate{GPUs: &none}}, false},
	} {
		if MayHaveGPUs(&r.p, &r.l) != r.want {
			t.Errorf("%+v %+v", r.p, r.l)
		}
	}
}

func TestGateGPUs(t *testing.T) {
	half, two := 0.5, 2.0
	slots := 2
	for _, r := range []struct {
		l    Limits
		s    Standing
		ask  GPUAsk
		want string
	}{
		{Limits{}, Standing{GPUs: 99}, GPUAsk{All: true}, ""},
		{Limits{MaxGPUSlots: &slots}, Standing{}, GPUAsk{}, ""},
		{Limits{MaxGPUSlots: &slots}, Standing{}, GPUAsk{Count: 2}, ""},
		{Limits{MaxGPUSlots: &slots}, Standing{}, GPUAsk{Count: 3, Field: "--gpus"}, "--gpus asks for 3 GPUs, and 2 is the most for one container"},
		{Limits{MaxGPUSlots: &slots}, Standing{}, GPUAsk{All: true, Field: "--gpus all"}, "--gpus all asks for all GPUs, and you may have 2 for one container"},
		{Limits{MaxGPUs: &half}, Standing{}, GPUAsk{Count: 1}, "you may have 0.5 in one container"},
		{Limits{MaxGPUs: &half}, Standing{}, GPUAsk{All: true}, "your limits"},
		{Limits{Aggregate: &Aggregate{GPUs: &two}}, Standing{GPUs: 1}, GPUAsk{Count: 1}, ""},
		{Limits{Aggregate: &Aggregate{GPUs: &two}}, Standing{GPUs: 1, Holders: []string{"train", "web (all)"}}, GPUAsk{Count: 2}, "your limit for all containers is 2 (held: train, web (all);"},
		{Limits{Aggregate: &Aggregate{GPUs: &two}}, Standing{}, GPUAsk{Count: 3}, "you hold none"},
		{Limits{Aggregate: &Aggregate{GPUs: &two}}, Standing{}, GPUAsk{All: true}, "all GPUs"},
	} {
		v := Gate{Limits: &r.l}.GPUs(r.s, r.ask)
		if v.Allowed() != (r.want == "") || !strings.Contains(v.Reason, r.want) || v.Rule != "gpu-quota" {
			t.Errorf("%+v, %+v: %+v", r.s, r.ask, v)
		}
	}
}
