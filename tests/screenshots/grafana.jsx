// Draws a dashboard with Grafana's own components, without its server: `window.DASHBOARD` is the JSON that is imported
// in Grafana, in which each target also has what Prometheus answered (`answer`); `window.RANGE_S` the range of time.
import {
  createTheme, dateTime, FieldType, getDisplayProcessor, getDisplayValueAlignmentFactors, getFieldDisplayName,
  ThemeContext, VizOrientation,
} from '@grafana/data';
import { initPluginTranslations } from '@grafana/i18n';
import { BarGauge, BigValue, GlobalStyles, PanelChrome, TimeSeries, VizRepeater } from '@grafana/ui';
import '@fontsource/inter/latin-400.css';
import '@fontsource/inter/latin-500.css';
import { createRoot } from 'react-dom/client';
import 'uplot/dist/uPlot.min.css';

const UNIT_PX = 30, GAP_PX = 8, COLUMNS = 24; // Grafana's grid
const theme = createTheme({ colors: { mode: 'dark' } });
const [begin, end] = window.RANGE_S.map((seconds) => dateTime(1000 * seconds));
const timeRange = { from: begin, to: end, raw: { from: begin, to: end } };

function frames(panel) {
  const { defaults, overrides } = panel.fieldConfig;
  const series = panel.targets.flatMap((target) => target.answer.map((one) => ({ target, ...one })));
  return series.map(({ target, metric, values }, seriesIndex) => {
    const labels = Object.entries(metric).map(([label, value]) => `${label}="${value}"`).join(', ');
    const legend = target.legendFormat.replace(/{{(\w+)}}/g, (_, label) => metric[label] ?? '');
    const name = target.legendFormat === '__auto' ? labels || panel.title : legend.trim();
    const special = overrides.filter(({ matcher }) => matcher.options === name);
    const config = { color: { mode: 'palette-classic' }, ...defaults, displayNameFromDS: name };
    for (const { id, value } of special.flatMap(({ properties }) => properties)) {
      if (id.startsWith('custom.')) config.custom = { ...config.custom, [id.slice(7)]: value };
      else config[id] = value;
    }
    const time = { name: 'time', type: FieldType.time, values: values.map(([at]) => 1000 * at) };
    time.config = { interval: 1000 * target.step_s };
    const value = { name: 'value', type: FieldType.number, config, state: { seriesIndex } };
    value.values = values.map(([, text]) => (Number.isFinite(Number(text)) ? Number(text) : null));
    for (const field of [time, value]) field.display = getDisplayProcessor({ field, theme, timeZone: 'utc' });
    const frame = { refId: target.refId, fields: [time, value], length: values.length };
    value.state.displayName = getFieldDisplayName(value, frame);
    return frame;
  });
}

// The last value of each series, as Grafana shows it.
function lasts(found) {
  return found.map(({ fields: [, field] }) => {
    const value = field.display(field.values.at(-1));
    return { field, display: { ...value, title: field.state.displayName } };
  });
}

function Content({ panel, width, height }) {
  const found = frames(panel);
  if (!found.length) return <div style={{ margin: 'auto', color: theme.colors.text.secondary }}>No data</div>;
  const { options } = panel;
  if (panel.type === 'timeseries') {
    const legend = { showLegend: true, calcs: [], ...options.legend };
    return (
      <TimeSeries frames={found} width={width} height={height} timeRange={timeRange} timeZone="utc" legend={legend} />
    );
  }
  const repeated = ({ value: { field, display }, width, height, count, alignmentFactors }) => {
    if (panel.type === 'bargauge') {
      const { max } = field.config, all = found.flatMap(({ fields }) => fields[1].values);
      return (
        <BarGauge {...{ theme, width, height, alignmentFactors, value: display, display: field.display }} orientation="horizontal"
          field={{ ...field.config, min: field.config.min ?? 0, max: max ?? Math.max(...all) }}
          displayMode={options.displayMode} valueDisplayMode="color" namePlacement={options.namePlacement} showUnfilled />
      );
    }
    const textMode = options.textMode;
    const value = textMode === 'auto' && count === 1 ? { ...display, title: undefined } : display;
    return <BigValue {...{ theme, width, height, value, textMode, count }} colorMode={options.colorMode} graphMode="none" />;
  };
  const orientation = panel.type === 'bargauge' ? VizOrientation.Horizontal : VizOrientation.Auto;
  return (
    <VizRepeater {...{ width, height, orientation, source: found }} getValues={() => lasts(found)}
      getAlignmentFactors={getDisplayValueAlignmentFactors} renderValue={repeated} renderCounter={1} itemSpacing={4} />
  );
}

function Place({ panel }) {
  const { x, y, w, h } = panel.gridPos;
  const column = (window.innerWidth - GAP_PX) / COLUMNS;
  const width = w * column - GAP_PX, height = h * (UNIT_PX + GAP_PX) - GAP_PX;
  const place = { position: 'absolute', left: x * column + GAP_PX, top: y * (UNIT_PX + GAP_PX) + GAP_PX, width, height };
  if (panel.type === 'row') return <div style={{ ...place, ...theme.typography.h6, paddingTop: 8 }}>⌄ {panel.title}</div>;
  return (
    <div style={place}>
      <PanelChrome width={width} height={height} title={panel.title} description={panel.description}>
        {(width, height) => <Content panel={panel} width={width} height={height} />}
      </PanelChrome>
    </div>
  );
}

await initPluginTranslations('downpour');
await Promise.all([400, 500].map((weight) => document.fonts.load(`${weight} 14px Inter`))); // texts are measured
const root = document.getElementById('root');
const panels = window.DASHBOARD.panels;
root.style.height = `${Math.max(...panels.map(({ gridPos: { y, h } }) => y + h)) * (UNIT_PX + GAP_PX) + GAP_PX}px`;
createRoot(root).render(
  <ThemeContext.Provider value={theme}>
    <GlobalStyles />
    {panels.map((panel) => <Place key={panel.id} panel={panel} />)}
  </ThemeContext.Provider>
);
