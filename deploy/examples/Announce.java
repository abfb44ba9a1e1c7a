// Announces a study to Isocenter from Java, with kafka-clients and nothing else:
//   java -cp kafka-clients.jar:slf4j-api.jar Announce.java kafka:9092
// Java's default partitioner is murmur2, and its producer is idempotent with acks=all since 3.0.

import java.nio.charset.StandardCharsets;
import java.time.Instant;
import java.time.temporal.ChronoUnit;
import java.util.Map;
import java.util.Properties;
import java.util.UUID;
import org.apache.kafka.clients.producer.KafkaProducer;
import org.apache.kafka.clients.producer.ProducerRecord;
import org.apache.kafka.common.serialization.StringSerializer;

public class Announce {
    public static void main(String[] arguments) throws Exception {
        String uid = "1.2.826.0.1.3680043.10.54321.3";
        String data = "{\"study_instance_uid\":\"" + uid + "\","
            + "\"location\":{\"kind\":\"dimse\",\"ref\":\"dimse://PACS_EAST\"},\"sender\":\"RIS_EAST\"}";
        Map<String, String> attributes = Map.of(
            "ce_specversion", "1.0",
            // The same when the same thing is announced again.
            "ce_id", UUID.nameUUIDFromBytes(data.getBytes(StandardCharsets.UTF_8)).toString(),
            "ce_source", "/hospital-east/ris",
            "ce_type", "org.isocenter.inbound.study.announced.v1",
            "ce_time", Instant.now().truncatedTo(ChronoUnit.MILLIS).toString(),
            "content-type", "application/json");

        Properties settings = new Properties();
        settings.put("bootstrap.servers", arguments[0]);
        settings.put("acks", "all");
        settings.put("enable.idempotence", "true");
        ProducerRecord<String, String> record = new ProducerRecord<>("inbound.study.v1", uid, data);
        attributes.forEach((name, value) -> record.headers().add(name, value.getBytes(StandardCharsets.UTF_8)));
        try (var producer = new KafkaProducer<>(settings, new StringSerializer(), new StringSerializer())) {
            System.out.println(producer.send(record).get()); // throws when it is not durable
        }
    }
}
