package limits

import (
	"math"
	"strconv"

	"go.yaml.in/yaml/v3"

	"github.com/ds01/ds01-proxy/policy"
)

// A field is a key of a layer, and where its value stands in policy.Limits.
type field struct {
	key string
	// read sets the field from the text of a value.
	read func(l *policy.Limits, text string) error
	// take copies the field, and clear makes it unlimited.
	take  func(to, from *policy.Limits)
	clear func(l *policy.Limits)
	// show returns the value, or "" for unlimited.
	show func(l *policy.Limits) string
}

func fieldAt[T any](key string, at func(*policy.Limits) **T, parse func(string) (T, error), show func(T) string) field {
	return field{
		key: key,
		read: func(l *policy.Limits, text string) error {
			v, err := parse(text)
			if err == nil {
				*at(l) = &v
			}
			return err
		},
		take:  func(to, from *policy.Limits) { *at(to) = *at(from) },
		clear: func(l *policy.Limits) { *at(l) = nil },
		show: func(l *policy.Limits) string {
			if v := *at(l); v != nil {
				return show(*v)
			}
			return ""
		},
	}
}

// The places of fields that are spoken of by name.
const (
	fieldMemory     = 1
	fieldMemorySwap = 2
	// firstAggregate is the first field of the aggregate; all others follow it.
	firstAggregate = 8
	numFields      = 13
)

// fields are the keys of a layer in the order of the layout, then those of its
// aggregate. The limits that they are used on have an aggregate.
var fields = [numFields]field{
	fieldAt("max_cpus", func(l *policy.Limits) **int64 { return &l.PerContainer.NanoCPUs }, parseCPUs, showCPUs),
	fieldAt("memory", func(l *policy.Limits) **int64 { return &l.PerContainer.Memory }, parseSize(minMemory), showSize),
	fieldAt("memory_swap", func(l *policy.Limits) **int64 { return &l.PerContainer.MemorySwap }, parseSize(minMemory), showSize),
	fieldAt("shm_size", func(l *policy.Limits) **int64 { return &l.PerContainer.ShmSize }, parseSize(minShm), showSize),
	fieldAt("pids_limit", func(l *policy.Limits) **int64 { return &l.PerContainer.PIDs }, parseWhole[int64](1, maxPIDs), showWhole[int64]),
	fieldAt("max_containers_per_user", func(l *policy.Limits) **int { return &l.MaxContainers }, parseWhole(1, math.MaxInt32), showWhole[int]),
	fieldAt("max_gpu_equivalents", func(l *policy.Limits) **float64 { return &l.MaxGPUs }, parseGPUs, showDecimal),
	fieldAt("max_gpu_slots_per_container", func(l *policy.Limits) **int { return &l.MaxGPUSlots }, parseWhole(0, math.MaxInt32), showWhole[int]),
	fieldAt("cpu_quota", func(l *policy.Limits) **int64 { return &l.Aggregate.CPUQuota }, parseQuota, showQuota),
	fieldAt("memory_max", func(l *policy.Limits) **int64 { return &l.Aggregate.MemoryMax }, parseSize(minMemory), showSize),
	fieldAt("memory_high", func(l *policy.Limits) **int64 { return &l.Aggregate.MemoryHigh }, parseSize(minMemory), showSize),
	fieldAt("tasks_max", func(l *policy.Limits) **int64 { return &l.Aggregate.TasksMax }, parseWhole[int64](1, maxPIDs), showWhole[int64]),
	fieldAt("gpu_limit", func(l *policy.Limits) **float64 { return &l.Aggregate.GPUs }, parseGPUs, showDecimal),
}

// fieldOf returns the place of a key, or -1 where no field has it.
func fieldOf(key string, aggregate bool) int {
	for i := range fields {
		if fields[i].key == key && (i >= firstAggregate) == aggregate {
			return i
		}
	}
	return -1
}

// A layer is what one place of the files says: the defaults, a group, or an override.
type layer struct {
	from   string
	values policy.Limits
	// lines are where each field was set, or made null; 0 where it was not.
	lines [numFields]int
}

func newLayer(from string) *layer {
	return &layer{from: from, values: policy.Limits{Aggregate: new(policy.Aggregate)}}
}

// An origin is the layer that set a field, and the line; none where nothing did.
type origin struct {
	from string
	line int
}

type origins [numFields]origin

// builtIn is where the limits come from that no file has; its lines mean nothing.
const builtIn = "built-in"

func (o origin) String() string {
	switch o.from {
	case "":
		return "not set"
	case builtIn:
		return builtIn
	}
	return o.from + ": line " + strconv.Itoa(o.line)
}

// merge lays one layer over the other, field by field. The result is not to be
// written to: it shares its values with the layers.
func merge(layers ...*layer) (policy.Limits, origins) {
	out := policy.Limits{Aggregate: new(policy.Aggregate)}
	var from origins
	for _, l := range layers {
		for i := range fields {
			if l.lines[i] != 0 {
				fields[i].take(&out, &l.values)
				from[i] = origin{l.from, l.lines[i]}
			}
		}
	}
	// Memory and swap together cannot be less than memory; the Engine refuses it.
	if c := &out.PerContainer; c.Memory != nil && c.MemorySwap != nil && *c.MemorySwap < *c.Memory {
		c.MemorySwap = c.Memory
		from[fieldMemorySwap] = from[fieldMemory]
	}
	if *out.Aggregate == (policy.Aggregate{}) {
		out.Aggregate = nil
	}
	return out, from
}

// take sets a field from a value of the file.
func (l *layer) take(r *reader, i int, what string, value *yaml.Node) {
	text, null, ok := r.scalar(what, value)
	switch {
	case !ok:
		return
	case null:
		fields[i].clear(&l.values)
	default:
		if err := fields[i].read(&l.values, text); err != nil {
			r.bad(value.Line, "%s: %v", what, err)
			return
		}
	}
	l.lines[i] = value.Line
}

// read reads a layer; own has the keys that are not fields.
func (l *layer) read(r *reader, what string, node *yaml.Node, own func(key string, value *yaml.Node) bool) {
	for key, value := range r.pairs(what, node) {
		name := what + "." + key.Value
		if i := fieldOf(key.Value, false); i >= 0 {
			l.take(r, i, name, value)
		} else if key.Value == "aggregate" {
			l.readAggregate(r, name, value)
		} else if own == nil || !own(key.Value, value) {
			r.unknown(name, key)
		}
	}
}

// readAggregate reads an aggregate; null makes all of its fields unlimited.
func (l *layer) readAggregate(r *reader, what string, node *yaml.Node) {
	if isNull(node) {
		for i := firstAggregate; i < numFields; i++ {
			l.lines[i] = node.Line
		}
		return
	}
	for key, value := range r.pairs(what, node) {
		if i := fieldOf(key.Value, true); i >= 0 {
			l.take(r, i, what+"."+key.Value, value)
		} else {
			r.unknown(what+"."+key.Value, key)
		}
	}
}

// A Line is one limit of a user.
type Line struct {
	// Key is as in the file, below "aggregate." for all containers together.
	Key string
	// From says which place sets it, such as "group student: line 12", or "not set".
	From string
	// Value is as in the file, or "unlimited".
	Value string
}

// explain lists limits with where they come from.
func explain(l policy.Limits, from origins) []Line {
	if l.Aggregate == nil {
		l.Aggregate = new(policy.Aggregate)
	}
	out := make([]Line, numFields)
	for i := range fields {
		line := Line{Key: fields[i].key, From: from[i].String(), Value: fields[i].show(&l)}
		if i >= firstAggregate {
			line.Key = "aggregate." + line.Key
		}
		if line.Value == "" {
			line.Value = "unlimited"
		}
		out[i] = line
	}
	return out
}
