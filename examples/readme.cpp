#include "server.h"

struct ChatUser : WSBaseUser {
    ChatUser() { maxIdle = 600; }
    std::string nick = "guest";
};

struct ChatConfig : WSBaseConfig {
    ChatConfig() { address = "localhost"; port = 12345; }
};

class ChatServer : public WebSocketServer<ChatUser, ChatConfig> {
    void process(ChatUser &user, WSMessage &msg) override { sendToAllBut(user, msg); }
};

int main() { ChatServer().run(); }
