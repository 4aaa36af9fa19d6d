package integration

import (
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/ds01/ds01-proxy/integration/lab"
)

const (
	noGPUs  = "{max_gpu_slots_per_container: 0, aggregate: {gpu_limit: 0}}"
	someGPU = "{max_gpu_slots_per_container: 1, aggregate: {gpu_limit: 2}}"
)

// TestGPUsWithoutGPUs asks for GPUs on an Engine that has none: what the limits refuse
// says so, and what they let through gets the Engine's own words.
func TestGPUsWithoutGPUs(t *testing.T) {
	const engines = "could not select device driver"
	d := newDesk(t, theEngine, someGPU, "profile_users: {bob: ml-lab}\n")
	for _, c := range []struct {
		gpus string
		text []string
	}{
		{"1", []string{engines}},
		{"device=0", []string{engines}},
		{"2", []string{"GPU quota: --gpus asks for 2 GPUs, and 1 is the most for one container (rule gpu-quota)"}},
		{`"device=0,1"`, []string{"asks for 2 GPUs", "rule gpu-quota"}},
		{"all", []string{"GPU quota: --gpus all asks for all GPUs", "Ask for a number: --gpus 1."}},
	} {
		d.refused(lab.Alice, c.text, "run", "--rm", "--gpus", c.gpus, lab.Image, "true")
	}
	for _, body := range []string{
		`"DeviceRequests":[{"Count":-1,"Capabilities":[["gpu"]]}]`, `"DeviceRequests":[{"Driver":"nvidia","Count":-2}]`,
		`"DeviceRequests":[{"Count":1,"Capabilities":[["gpu"]]},{"Count":1,"Capabilities":[["gpu"]]}]`,
		`"DeviceRequests":[{"Driver":"cdi","DeviceIDs":["nvidia.com/gpu=all"]}]`,
		`"DeviceRequests":[{"Driver":"cdi","DeviceIDs":["nvidia.com/gpu=0","nvidia.com/gpu=1"]}]`,
	} {
		if _, got := d.create(lab.Alice, body); got.status != http.StatusForbidden || !strings.Contains(got.body, "rule gpu-quota") {
			t.Errorf("%s: %d %s", body, got.status, got.body)
		}
	}
	// Held by what is created and never ran; the Engine looks for a driver at the start.
	for range 2 {
		if _, got := d.create(lab.Alice, `"DeviceRequests":[{"Count":1,"Capabilities":[["gpu"]]}]`); got.status != http.StatusCreated {
			t.Fatal(got)
		}
	}
	d.must(lab.Alice, "rename", d.all()[0], "holder-"+d.group)
	eventually(t, "the holder has its name", func() bool { return slices.Contains(d.report(lab.Alice).GPUs.Holders, "holder-"+d.group) })
	_, got := d.create(lab.Alice, `"DeviceRequests":[{"Count":1,"Capabilities":[["gpu"]]}]`)
	if got.status != http.StatusForbidden || !strings.Contains(got.body, "your limit for all containers is 2 (held: ") || !strings.Contains(got.body, "holder-"+d.group) {
		t.Errorf("a third: %d %s", got.status, got.body)
	}
	if r := d.report(lab.Alice); r.GPUs.Held != 2 || len(r.GPUs.Holders) != 2 {
		t.Errorf("%+v", r.GPUs)
	}
	d.refused(lab.Alice, []string{"--device /dev/nvidia0"}, "run", "--rm", "--device", "/dev/nvidia0", lab.Image, "true")
	d.refused(lab.Bob, []string{"/dev/nvidia0"}, "run", "--rm", "--device", "/dev/nvidia0", lab.Image, "true")
	d.refused(lab.Bob, []string{"asks for 2 GPUs", "rule gpu-quota"}, "run", "--rm", "--device", "/dev/nvidia0", "--device", "/dev/nvidia1", lab.Image, "true")
	// The variable is nothing to other runtimes.
	d.must(lab.Bob, "create", "--name", "void-"+d.group, "-e", "NVIDIA_VISIBLE_DEVICES=all", lab.Image)
	if c, _ := d.one("void-" + d.group); !slices.Contains(c.Config.Env, "NVIDIA_VISIBLE_DEVICES=all") {
		t.Errorf("under runc: %v", c.Config.Env)
	}
}

// TestNvidiasRuntime has a runtime of that name, which is runc, and images and requests
// whose environment asks for GPUs.
func TestNvidiasRuntime(t *testing.T) {
	for _, standard := range []bool{false, true} {
		name, flags := "asked for", []string{"--add-runtime", "nvidia=/usr/sbin/runc"}
		if standard {
			name, flags = "by default", append(flags, "--default-runtime", "nvidia")
		}
		t.Run(name, func(t *testing.T) {
			scratch, err := lab.NewScratch()
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() {
				if err := scratch.Close(); err != nil {
					t.Error(err)
				}
			})
			e, err := scratch.Engine(limit(t), flags...)
			if err != nil {
				t.Fatal(err)
			}
			for _, args := range [][]string{{"create", "--name", "cuda", lab.Image}, {"commit", "-c", "ENV NVIDIA_VISIBLE_DEVICES=all", "cuda", "cuda:1"}, {"rm", "cuda"}} {
				if _, err := e.Docker(limit(t), args...); err != nil {
					t.Fatal(err)
				}
			}
			run := []string{"run", "-d"}
			if !standard {
				run = append(run, "--runtime", "nvidia")
			}
			env := func(d *desk, args ...string) string {
				t.Helper()
				id := d.must(lab.Alice, append(append(slices.Clone(run), args...), "sleep", "1000")...)
				c, _ := d.one(id)
				for _, e := range c.Config.Env {
					if value, ok := strings.CutPrefix(e, "NVIDIA_VISIBLE_DEVICES="); ok {
						if n := strings.Count(strings.Join(c.Config.Env, "\n"), "NVIDIA_VISIBLE_DEVICES="); n != 1 {
							t.Errorf("%v", c.Config.Env)
						}
						return value
					}
				}
				return "not set"
			}
			not := newDesk(t, e, noGPUs, "")
			for _, args := range [][]string{{"cuda:1"}, {lab.Image}, {"-e", "NVIDIA_VISIBLE_DEVICES=all", "cuda:1"}, {"-e", "NVIDIA_VISIBLE_DEVICES=0", lab.Image}, {"-e", "NVIDIA_VISIBLE_DEVICES=void", "-e", "NVIDIA_VISIBLE_DEVICES=0", lab.Image}} {
				if got := env(not, args...); got != "void" {
					t.Errorf("%v without leave: %s", args, got)
				}
			}
			not.refused(lab.Alice, []string{"rule gpu-quota"}, "run", "--gpus", "1", lab.Image, "true")
			may := newDesk(t, e, someGPU, "")
			d := append(slices.Clone(run), "cuda:1", "true")
			may.refused(lab.Alice, []string{"the image's NVIDIA_VISIBLE_DEVICES asks for all GPUs", "--gpus 1"}, d...)
			may.refused(lab.Alice, []string{"asks for 2 GPUs"}, append(slices.Clone(run), "-e", "NVIDIA_VISIBLE_DEVICES=0,1", "cuda:1", "true")...)
			if got := env(may, "-e", "NVIDIA_VISIBLE_DEVICES=0", "cuda:1"); got != "0" {
				t.Errorf("one of them: %s", got)
			}
			if got := env(may, "-e", "NVIDIA_VISIBLE_DEVICES=void", "cuda:1"); got != "void" {
				t.Errorf("none of them: %s", got)
			}
			if r := may.report(lab.Alice); r.GPUs.Held != 1 {
				t.Errorf("%+v", r.GPUs)
			}
		})
	}
}
