package policy

import (
	"path"
	"slices"
	"strings"

	"github.com/docker/docker/api/types/container"
)

// A GPUAsk is what a container asks of the machine's GPUs. The zero GPUAsk asks for none.
type GPUAsk struct {
	// Field is where it asks, as users know it.
	Field string
	// All is true where it asks for whatever there is; otherwise Count are wanted, those
	// of Devices where these are named.
	All     bool
	Count   int
	Devices []string
	// ByEnv is true where nothing but the environment asks, the request's or the image's.
	ByEnv bool
}

// Any reports whether GPUs are asked for.
func (a GPUAsk) Any() bool { return a.All || a.Count > 0 }

// mostGPUs is more than any machine has.
const mostGPUs = 1 << 20

// visibleDevices is the variable by which nvidia's runtime is asked.
const visibleDevices = "NVIDIA_VISIBLE_DEVICES"

// AskedGPUs finds out what a container asks of GPUs: by device requests, by device nodes,
// and, where nvidia's runtime runs it, by its environment, be it the request's or the
// image's.
func AskedGPUs(req *container.CreateRequest, imageEnv []string, host Host) GPUAsk {
	var ask GPUAsk
	named := make(map[string]bool)
	name := func(field, ids string) {
		// Nvidia's driver joins the IDs with commas, and so would several in one be read.
		for id := range strings.SplitSeq(ids, ",") {
			id = strings.TrimPrefix(strings.TrimSpace(id), "nvidia.com/gpu=")
			switch {
			case id == "":
				continue
			case strings.EqualFold(id, "all"), strings.HasSuffix(strings.ToLower(id), "=all"):
				// Nvidia's library does not look at the case.
				ask.All = true
			case !named[id]:
				named[id] = true
				ask.Count++
				ask.Devices = append(ask.Devices, id)
			}
			ask.Field = field
		}
	}
	hc := req.HostConfig
	if hc == nil {
		hc = &container.HostConfig{}
	}
	for _, d := range hc.DeviceRequests {
		switch {
		case len(d.DeviceIDs) > 0:
			ids := strings.Join(d.DeviceIDs, ",")
			name("--gpus device="+ids, ids)
		case d.Count < 0:
			ask.All, ask.Field = true, "--gpus all"
		case d.Count == 0:
			// The Engine has nvidia's hook run and does not say for what: the variable does.
			ask.All, ask.Field = true, "--gpus without a number"
		case d.Count > 0:
			ask.Count = min(ask.Count+min(d.Count, mostGPUs), mostGPUs)
			ask.Field = "--gpus"
		}
	}
	for _, d := range hc.Devices {
		node := path.Clean(d.PathOnHost)
		id, gpu := strings.CutPrefix(node, "/dev/nvidia")
		switch {
		case gpu && numbered(id):
			name("--device "+d.PathOnHost, id)
		case node == "/dev", node == "/dev/nvidia-caps":
			// The Engine gives all nodes in a directory.
			ask.All, ask.Field = true, "--device "+d.PathOnHost
		}
	}
	if Nvidia(hc.Runtime, host) && !ask.Any() {
		// What asks otherwise has its own say about the variable; see GrantGPUs.
		if value, where, ok := visible(req, imageEnv); ok && !slices.Contains([]string{"", "void", "none"}, value) {
			name(where, value)
			ask.ByEnv = ask.Any()
		}
	}
	return ask
}

// MayHaveGPUs reports whether a user may have any.
func MayHaveGPUs(p *Profile, l *Limits) bool {
	none := l.MaxGPUs != nil && *l.MaxGPUs == 0 || l.MaxGPUSlots != nil && *l.MaxGPUSlots == 0 ||
		l.Aggregate != nil && l.Aggregate.GPUs != nil && *l.Aggregate.GPUs == 0
	return (p.GPUs || p.OwnershipOnly) && !none
}

// GrantGPUs leaves a container the GPUs that it asks for by device requests, by device
// nodes or, where its user may have GPUs, by its environment, and keeps nvidia's runtime
// from giving it more: images say all, whoever runs them.
func GrantGPUs(req *container.CreateRequest, asked GPUAsk, may bool, host Host) GPUAsk {
	if asked.ByEnv && !may {
		asked = GPUAsk{}
	}
	if (Nvidia(req.HostConfig.Runtime, host) || len(req.HostConfig.DeviceRequests) > 0) && !asked.ByEnv {
		// Where a device request is the driver's, the Engine adds what it comes to, and
		// the last word counts.
		hideGPUs(req)
	}
	return asked
}

// Nvidia reports whether nvidia's runtime runs a container.
func Nvidia(runtime string, host Host) bool {
	if runtime == "" {
		runtime = host.DefaultRuntime
	}
	return strings.Contains(runtime, "nvidia")
}

func numbered(s string) bool { return s != "" && strings.Trim(s, "0123456789") == "" }

// visible finds the variable: the last of the request's wins, and any wins over the
// image's.
func visible(req *container.CreateRequest, imageEnv []string) (value, where string, ok bool) {
	for _, env := range []struct {
		where string
		list  []string
	}{{"the image's " + visibleDevices, imageEnv}, {"-e " + visibleDevices, req.Env}} {
		for _, e := range env.list {
			if key, v, _ := strings.Cut(e, "="); key == visibleDevices {
				value, where, ok = v, env.where, true
			}
		}
	}
	return value, where, ok
}

// hideGPUs keeps nvidia's runtime from giving a container any device.
func hideGPUs(req *container.CreateRequest) {
	req.Env = slices.DeleteFunc(slices.Clone(req.Env), func(e string) bool {
		key, _, _ := strings.Cut(e, "=")
		return key == visibleDevices
	})
	req.Env = append(req.Env, visibleDevices+"=void")
}

// LabelGPUs says on a container which devices it was given; nothing where it has none.
func LabelGPUs(req *container.CreateRequest, devices []string) {
	if len(devices) > 0 {
		req.Labels[LabelGPUSlot] = strings.Join(devices, ",")
		req.Labels[LabelGPUEphemeral] = "true"
	}
}
