// Package bodies makes create requests that two readers could read differently,
// and reads them as old Engines do.
package bodies

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"strings"

	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/api/types/network"
)

// A Maker makes bodies from its random numbers alone.
type Maker struct{ *rand.Rand }

// NewMaker returns a Maker whose bodies are the seed's.
func NewMaker(seed uint64) Maker { return Maker{rand.New(rand.NewPCG(seed, 0))} }

func pick[T any](m Maker, list []T) T { return list[m.IntN(len(list))] }

// A field is a key and values that it may have. The first values are what most
// clients would send; all of them are safe to create on a machine.
type field struct {
	key    string
	values []string
}

// config are fields of the top level, host those of HostConfig. Each list has what
// grants something beside what does not.
var (
	config = []field{
		{"Cmd", []string{`["true"]`, `"true"`, `[]`, `[["true"]]`}},
		{"Entrypoint", []string{`["true"]`, `"true"`, `[""]`}},
		{"Env", []string{`["A=1"]`, `["A=1","A=2","\ud800"]`, `"A=1"`, `{"A":"1"}`}},
		{"Labels", []string{`{"a":"b"}`, `{"ds01.user":"bob"}`, `{"ds01.user":"bob","DS01.USER":"bob","ds01.protected":"true"}`, `{"a":"b","a":"c"}`, `{"a":1}`, `["a=b"]`}},
		{"Hostname", []string{`"h"`, `7`}},
		{"User", []string{`"1000"`, `""`, `1000`}},
		{"Tty", []string{`true`, `false`, `"true"`, `1`}},
		{"WorkingDir", []string{`"/tmp"`}},
		{"StopTimeout", []string{`3`, `-1`, `1e1`, `1.5`, `9223372036854775808`}},
		{"ExposedPorts", []string{`{"80/tcp":{}}`, `{}`, `["80"]`}},
		{"NetworkingConfig", []string{`{}`, `{"EndpointsConfig":{}}`, `{"EndpointsConfig":null}`, `[]`}},
		{"Unknown", []string{`{"HostConfig":{"Privileged":true}}`, `[[[[[[]]]]]]`, `1e400`}},
	}
	host = []field{
		{"Privileged", []string{`true`, `false`, `"true"`, `1`}},
		{"Binds", []string{`["/tmp:/x"]`, `["/:/host:ro"]`, `[]`, `"/:/host"`}},
		{"CgroupParent", []string{`"/evil"`, `"../../evil"`, `""`, `0`}},
		{"NetworkMode", []string{`"none"`, `"host"`, `"default"`, `""`, `true`}},
		{"PidMode", []string{`"host"`, `""`, `1`}},
		{"IpcMode", []string{`"private"`, `"host"`, `"none"`}},
		{"UTSMode", []string{`"host"`, `""`}},
		{"CapAdd", []string{`["SYS_ADMIN"]`, `[]`, `"ALL"`}},
		{"SecurityOpt", []string{`["no-new-privileges"]`, `[]`}},
		{"Memory", []string{`104857600`, `0`, `1e8`, `104857600.5`, `9223372036854775808`, `"100"`}},
		{"NanoCpus", []string{`1000000000`, `0`, `1e9`, `1E+9`}},
		{"PidsLimit", []string{`100`, `-1`, `0`, `99999999999999999999`}},
		{"ShmSize", []string{`1048576`, `-0`}},
		{"ReadonlyRootfs", []string{`true`, `false`}},
		{"RestartPolicy", []string{`{"Name":"no"}`, `{"name":"on-failure","MaximumRetryCount":2}`, `"always"`}},
		{"LogConfig", []string{`{"Type":"json-file"}`, `{"Type":"none"}`}},
		{"PortBindings", []string{`{"80/tcp":[{"HostPort":"8080"}]}`, `{}`, `null`}},
		{"MaskedPaths", []string{`[]`, `["/proc/kcore"]`}},
		{"OomScoreAdj", []string{`100`, `1000`}},
		{"HostConfig", []string{`{"Privileged":true}`}},
	}
)

// Create makes the body of POST /containers/create. About half of them are such
// that an Engine takes them.
func (m Maker) Create() string {
	image := pick(m, []string{`"busybox:local"`, `"busybox:local"`, `"busybox:local"`, `"busybox:local"`, `"busybox:local"`, `"busybox:local"`, `"nosuch"`, `null`})
	members := []string{m.member("Image", image)}
	for range m.IntN(4) {
		members = append(members, m.oneOf(config))
	}
	for range m.IntN(4) / 2 {
		// Host settings where only old Engines look for them.
		members = append(members, m.oneOf(host))
	}
	for range pick(m, []int{0, 1, 1, 1, 2, 3}) {
		members = append(members, m.member("HostConfig", m.hostConfig()))
	}
	m.Shuffle(len(members), func(i, j int) { members[i], members[j] = members[j], members[i] })
	body := m.object(members)
	switch m.IntN(40) {
	case 0:
		return `{` + m.key("Config") + `:` + body + `}`
	case 1:
		return body[:m.IntN(len(body))]
	case 2:
		return "[" + body + "]"
	case 3:
		return pick(m, []string{"null", `""`, "0", "", " ", "{}", "[]", "\xef\xbb\xbf" + body, "// x\n" + body})
	case 4, 5:
		return body + pick(m, []string{"{}", "x", ",", body, "]", "}", "\x00", "null"})
	case 6, 7:
		return pick(m, []string{" ", "\n\t", "\r\n"}) + body + pick(m, []string{" ", "\n", "\t\r\n"})
	}
	return body
}

// hostConfig makes the value of HostConfig.
func (m Maker) hostConfig() string {
	switch m.IntN(12) {
	case 0:
		return "null"
	case 1:
		return "{}"
	case 2:
		return pick(m, []string{`[]`, `""`, `[{"Privileged":true}]`})
	}
	var members []string
	for range 1 + m.IntN(5) {
		members = append(members, m.oneOf(host))
	}
	return m.object(members)
}

// oneOf makes a member, in one of six cases followed by another of its key.
func (m Maker) oneOf(fields []field) string {
	f := pick(m, fields)
	value := func() string {
		switch n := m.IntN(20); {
		case n == 0:
			return "null"
		case n < 4:
			return pick(m, f.values)
		}
		return f.values[m.IntN(min(2, len(f.values)))]
	}
	one := m.member(f.key, value())
	if m.IntN(6) == 0 {
		one += "," + m.member(f.key, value())
	}
	return one
}

func (m Maker) member(key, value string) string { return m.key(key) + ":" + value }

func (m Maker) object(members []string) string {
	return "{" + strings.Join(members, pick(m, []string{",", ",", " , ", ",\n"})) + "}"
}

// key writes a key in one of the ways that encoding/json takes for it, and
// sometimes in one that it does not.
func (m Maker) key(name string) string {
	how := m.IntN(8)
	var b strings.Builder
	for _, r := range name {
		switch {
		case how == 0 && m.IntN(2) == 0, how == 1 && (r == 's' || r == 'S' || r == 'k' || r == 'K'):
			r = m.fold(r)
		case how == 2:
			fmt.Fprintf(&b, `\u%04x`, r)
			continue
		case how == 3 && m.IntN(12) == 0:
			b.WriteString(pick(m, []string{"\u0131", "\u0130", "-", "_", " ", `\u0000`, "\u00df"}))
		}
		b.WriteRune(r)
	}
	return `"` + b.String() + `"`
}

// fold returns another letter that is the same but for its case: the long s and the
// sign of the kelvin are an s and a k to encoding/json.
func (m Maker) fold(r rune) rune {
	switch {
	case r == 's' || r == 'S':
		return pick(m, []rune{'s', 'S', '\u017f'})
	case r == 'k' || r == 'K':
		return pick(m, []rune{'k', 'K', '\u212a'})
	case 'a' <= r && r <= 'z':
		return r - 'a' + 'A'
	case 'A' <= r && r <= 'Z':
		return r - 'A' + 'a'
	}
	return r
}

// A Reading is what an Engine takes from a body.
type Reading struct {
	Config     *container.Config
	Host       *container.HostConfig
	Networking *network.NetworkingConfig
	// TopLevel is true where host settings stand at the top level.
	TopLevel bool
}

// Read reads a body as Engines up to 26.1 do: host settings at the top level count
// where there is no HostConfig, and some of them beside one. What follows the
// first JSON value is not looked at.
func Read(body string) (Reading, error) {
	var w struct {
		*container.Config
		InnerHostConfig  *container.HostConfig     `json:"HostConfig,omitempty"`
		Cpuset           string                    `json:",omitempty"`
		NetworkingConfig *network.NetworkingConfig `json:"NetworkingConfig,omitempty"`
		*container.HostConfig
	}
	if err := json.NewDecoder(strings.NewReader(body)).Decode(&w); err != nil {
		return Reading{}, err
	}
	out := Reading{w.Config, w.InnerHostConfig, w.NetworkingConfig, w.HostConfig != nil || w.Cpuset != ""}
	if outer := w.HostConfig; outer != nil {
		if out.Host == nil {
			out.Host = outer
		}
		inner := out.Host
		for _, of := range []struct{ into, from *int64 }{{&inner.Memory, &outer.Memory}, {&inner.MemorySwap, &outer.MemorySwap}, {&inner.CPUShares, &outer.CPUShares}} {
			if *of.into == 0 {
				*of.into = *of.from
			}
		}
		for _, of := range []struct{ into, from *string }{{&inner.CpusetCpus, &outer.CpusetCpus}, {&inner.VolumeDriver, &outer.VolumeDriver}} {
			if *of.into == "" {
				*of.into = *of.from
			}
		}
	}
	return out, nil
}
